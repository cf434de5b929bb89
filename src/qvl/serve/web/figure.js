// What an answer points at: a picture with the shapes on it, and the same as a list in words and numbers. An answer
// does not say which picture it means: the likeliest is taken, and a person can choose another.

import { copyButton } from "./copy.js";
import { make } from "./dom.js";
import { isPoint, toOriginal } from "./grounding.js";
import { Overlay, colours } from "./overlay.js";

export class Figure {
  #chosen = null; // by a person
  #shapes = [];
  #overlay = null;
  #placed = [];

  /** `surfaces`: pictures and pages in the order of the conversation, as surfaces() makes them. */
  constructor(surfaces) {
    this.surfaces = surfaces;
    this.slot = make("div");
    this.list = make("ul", { class: "legend", "aria-label": "Marked on the picture, in its pixels" });
    const copy = copyButton("Copy boxes", () => JSON.stringify(this.#placed.map(asJson)));
    const bar = make("div", { class: "figure-bar" }, surfaces.length > 1 ? this.#chooser() : null, copy);
    const attributes = { class: "grounded", "aria-label": "What the answer points at" };
    this.node = make("figure", attributes, this.slot, this.list, bar);
  }

  /** Draws shapes that are in pixels of the resized picture. */
  show(shapes) {
    if (JSON.stringify(shapes) === JSON.stringify(this.#shapes)) return;
    this.#shapes = shapes;
    this.#draw();
  }

  #draw() {
    const surface = this.#chosen ?? likeliest(this.surfaces, this.#shapes);
    if (this.#overlay?.surface !== surface) {
      this.#overlay = new Overlay(surface);
      this.slot.replaceChildren(this.#overlay.node);
    }
    if (this.select) this.select.selectedIndex = this.surfaces.indexOf(surface);
    this.#placed = toOriginal(this.#shapes, surface.resized, surface);
    this.#overlay.show(this.#placed);
    this.#describe(this.#placed);
  }

  #describe(shapes) {
    const tints = colours(shapes);
    this.list.replaceChildren(...shapes.map((shape, i) => make("li", {}, this.#entry(shape, i, tints[i]))));
  }

  /** A row of the list: pointing at it, or coming to it with the keyboard, makes its shape stand out. */
  #entry(shape, i, tint) {
    const on = () => this.#overlay.highlight(i);
    const off = () => this.#overlay.highlight(null);
    const swatch = make("span", { class: "swatch" });
    swatch.style.setProperty("--mark", tint);
    const name = make("span", { class: "legend-name" }, shape.label || (isPoint(shape) ? "point" : "box"));
    const numbers = make("span", { class: "numbers" }, place(shape));
    const listeners = { onpointerenter: on, onfocus: on, onpointerleave: off, onblur: off };
    return make("button", { type: "button", class: "legend-row", ...listeners }, swatch, name, numbers);
  }

  #chooser() {
    const options = this.surfaces.map(({ name }) => make("option", {}, name));
    const change = () => {
      this.#chosen = this.surfaces[this.select.selectedIndex];
      this.#draw();
    };
    this.select = make("select", { onchange: change }, ...options);
    return make("label", { class: "chooser" }, "Drawn on ", this.select);
  }
}

/** Every picture and page of the turns: {medium, name, width, height, resized, turn}. Unknown costs are left out. */
export async function surfaces(turns) {
  const media = turns.flatMap((turn, i) => turn.media.map((medium) => ({ medium, turn: i })));
  const costs = await Promise.allSettled(media.map(({ medium }) => medium.measure()));
  return media.flatMap(({ medium, turn }, i) =>
    (costs[i].value ?? []).map((cost, page, all) => {
      const name = all.length > 1 ? `${medium.name}, page ${page + 1}` : medium.name;
      const resized = { width: cost.resized_width, height: cost.resized_height };
      return { medium, turn, name, width: cost.width, height: cost.height, resized };
    }),
  );
}

/** The first picture of the newest turn with one in which all shapes have room, or else of any turn. */
function likeliest(all, shapes) {
  const newest = all.filter(({ turn }) => turn === all.at(-1).turn);
  const right = Math.max(...shapes.map((s) => s.x2 ?? s.x));
  const bottom = Math.max(...shapes.map((s) => s.y2 ?? s.y));
  const roomy = ({ resized }) => right <= resized.width && bottom <= resized.height;
  return newest.find(roomy) ?? all.findLast(roomy) ?? newest[0];
}

const pixel = (value) => Math.round(value);

function place(shape) {
  if (isPoint(shape)) return `${pixel(shape.x)}, ${pixel(shape.y)}`;
  return `${pixel(shape.x1)}, ${pixel(shape.y1)} – ${pixel(shape.x2)}, ${pixel(shape.y2)}`;
}

/** As `qvl ask --json` writes them. */
function asJson(shape) {
  const tenth = (value) => Math.round(value * 10) / 10;
  if (isPoint(shape)) return { label: shape.label, point: [shape.x, shape.y].map(tenth) };
  return { label: shape.label, box: [shape.x1, shape.y1, shape.x2, shape.y2].map(tenth) };
}
