// Shapes over a picture, in its original pixels. They lie in a drawing with the picture's own coordinates, and so
// stay in place however large it is shown; lines and names keep their size on the screen.

import { draw, make } from "./dom.js";
import { isPoint } from "./grounding.js";
import { thumb } from "./thumb.js";

// Told apart on any picture by the two-coloured line around them; names have a ground of their own.
const COLOURS = ["#e5484d", "#0090ff", "#2f9e44", "#f2a10d", "#9a5bd0", "#e93d82", "#12a594", "#ff7a1a"];

/** The colour of each shape: one for each name. */
export function colours(shapes) {
  const names = [...new Set(shapes.map((shape) => shape.label))];
  return shapes.map((shape) => COLOURS[names.indexOf(shape.label) % COLOURS.length]);
}

export class Overlay {
  /** `surface`: {medium, width, height}, the picture under the shapes and its original size. */
  constructor(surface) {
    this.surface = surface;
    const { width, height } = surface;
    const box = { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" };
    this.drawing = draw("svg", { ...box, class: "shapes" });
    this.names = make("div", { class: "names", "aria-hidden": "true" }); // the list below says the same in words
    this.node = make("div", { class: "stage" }, thumb(surface.medium, { controls: true }), this.drawing, this.names);
    this.node.style.setProperty("--width", width);
    this.node.style.setProperty("--height", height);
  }

  /** Replaces what is drawn. `shapes`: in original pixels. */
  show(shapes) {
    const tints = colours(shapes);
    this.marks = shapes.map((shape, i) => (isPoint(shape) ? this.#dot(shape, tints[i]) : rectangle(shape, tints[i])));
    this.tags = shapes.map((shape, i) => this.#name(shape, tints[i]));
    const dots = this.marks.filter((mark) => mark instanceof HTMLElement);
    this.drawing.replaceChildren(...this.marks.filter((mark) => mark instanceof SVGElement));
    this.names.replaceChildren(...dots, ...this.tags.filter(Boolean));
  }

  /** Makes one shape stand out; null: none. */
  highlight(chosen) {
    this.node.classList.toggle("choosing", chosen !== null);
    for (const list of [this.marks, this.tags]) {
      list.forEach((node, i) => node?.classList.toggle("chosen", i === chosen));
    }
  }

  #dot({ x, y }, colour) {
    return this.#placed(make("span", { class: "dot" }), x, y, colour);
  }

  /** A name stands above its box, or beside its point, and turns where the picture ends. */
  #name(shape, colour) {
    if (!shape.label) return null;
    const [x, y] = isPoint(shape) ? [shape.x, shape.y] : [shape.x1, shape.y1];
    const turned = x > this.surface.width * 0.7;
    const anchor = turned ? (shape.x2 ?? x) : x;
    const node = this.#placed(make("span", { class: "name" }, shape.label), anchor, y, colour);
    const room = turned ? anchor : this.surface.width - anchor;
    node.style.setProperty("--room", `${(100 * room) / this.surface.width}%`);
    node.classList.toggle("below", y < this.surface.height * 0.1);
    node.classList.toggle("left", turned);
    node.classList.toggle("by-point", isPoint(shape));
    return node;
  }

  #placed(node, x, y, colour) {
    node.style.left = `${(100 * x) / this.surface.width}%`;
    node.style.top = `${(100 * y) / this.surface.height}%`;
    node.style.setProperty("--mark", colour);
    return node;
  }
}

/** A line in the shape's colour on a wider one that parts it from the picture. */
function rectangle({ x1, y1, x2, y2 }, colour) {
  const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1, "vector-effect": "non-scaling-stroke" };
  const line = draw("rect", { ...place, class: "line", stroke: colour });
  return draw("g", { class: "mark" }, draw("rect", { ...place, class: "halo" }), line);
}
