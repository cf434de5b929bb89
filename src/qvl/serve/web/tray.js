// What will go with the next question: thumbnails with their cost, each of which can be taken away again.

import { make } from "./dom.js";
import { icon } from "./icons.js";
import { read } from "./media.js";
import { announce, notice } from "./status.js";
import { count } from "./stats.js";
import { thumb } from "./thumb.js";

export class Tray {
  media = [];

  /** `list`: the element to fill. `detail`: a function that gives the budget chosen. `onchange`: after changes. */
  constructor(list, detail, onchange) {
    this.list = list;
    this.detail = detail;
    this.onchange = onchange;
  }

  /** Takes files in; of those that are no media the reason is shown. */
  async add(files) {
    notice();
    for (const result of await Promise.allSettled(files.map((file) => read(file, this.detail())))) {
      if (result.status === "fulfilled") this.#show(result.value);
      else notice(result.reason.message);
    }
    this.#changed();
  }

  /** Hands everything over and is empty. */
  take() {
    const media = this.media;
    this.media = [];
    this.list.replaceChildren();
    this.#changed();
    return media;
  }

  clear() {
    for (const medium of this.take()) medium.release();
  }

  /** Counts pictures anew where another budget was chosen. */
  recount() {
    for (const medium of this.media.filter((each) => each.detail !== this.detail())) {
      medium.detail = this.detail();
      medium.costs = null;
      this.#measure(medium);
    }
  }

  #show(medium) {
    medium.label = make("span", { class: "cost" }, "counting …");
    const name = `Remove ${medium.name}`;
    const attributes = { type: "button", class: "remove", "aria-label": name, title: name };
    const remove = make("button", { ...attributes, onclick: () => this.#remove(medium) }, icon("close"));
    medium.row = make("li", { id: medium.id }, thumb(medium), medium.label, remove);
    this.media.push(medium);
    this.list.append(medium.row);
    announce(`${medium.name} added.`);
    this.#measure(medium);
  }

  async #measure(medium) {
    try {
      const costs = await medium.measure();
      const tokens = costs.reduce((sum, cost) => sum + cost.tokens, 0);
      const pages = costs.length > 1 ? `${count(costs.length, "page")}, ` : "";
      medium.label.textContent = `${pages}${count(tokens, "token")}`;
      medium.label.title = costs.map(explain).join("\n");
    } catch (error) {
      medium.label.textContent = "not accepted";
      medium.row.classList.add("refused");
      if (this.media.includes(medium)) notice(`${medium.name}: ${error.message}`);
    }
  }

  #remove(medium) {
    const next = medium.row.nextElementSibling ?? medium.row.previousElementSibling;
    medium.row.remove();
    medium.release();
    this.media = this.media.filter((other) => other !== medium);
    notice();
    announce(`${medium.name} removed.`);
    this.#changed();
    next?.querySelector(".remove").focus();
  }

  #changed() {
    this.list.hidden = !this.media.length;
    this.onchange();
  }
}

function explain({ width, height, resized_width: w, resized_height: h, tokens }) {
  return `${width} × ${height} pixels, read as ${w} × ${h}: ${count(tokens, "token")}`;
}
