// One answer on the page, while it grows and after: its text, what it points at, what it took, what can be done.

import { copyButton } from "./copy.js";
import { make } from "./dom.js";
import { Figure } from "./figure.js";
import { findShapes } from "./grounding.js";
import { icon } from "./icons.js";
import { MarkdownView } from "./markdown.js";

const PAUSE = 40; // milliseconds between two looks of a growing answer, at least; four times what a look takes
const NOTES = {
  length: "Cut off: the answer reached its token limit.",
  repetition: "Stopped: the answer had begun to repeat itself.",
  content_filter: "Cut off by the server.",
};

export class AnswerView {
  #text = "";
  #timer = null;
  #pause = PAUSE;
  #figure = null;

  /**
   * `surfaces`: a promise of the pictures that it may point at. `onpoint`: called with the first figure.
   * `again`: called to have it made anew.
   */
  constructor(number, surfaces, onpoint, again) {
    this.surfaces = surfaces;
    this.onpoint = onpoint;
    this.figure = make("div");
    this.text = make("div", { class: "text" });
    this.waiting = make("p", { class: "waiting" }, make("span", { class: "visually-hidden" }, "Reading"), dots());
    this.foot = make("div", { class: "foot" });
    this.markdown = new MarkdownView(this.text);
    this.again = make("button", { type: "button", class: "quiet again", onclick: again }, icon("redo"), "Ask again");
    const parts = [this.figure, this.text, this.waiting, this.foot];
    this.node = make("article", { class: "answer", "aria-label": `Answer ${number}`, "aria-busy": "true" }, ...parts);
  }

  /** The whole text so far. */
  show(text) {
    this.#text = text;
    this.#timer ??= setTimeout(() => this.#look(), this.#pause);
  }

  /** The end. `reason`: why; `facts`: what it took. */
  finish(reason, facts) {
    this.#close();
    if (NOTES[reason]) this.foot.append(make("p", { class: "note" }, NOTES[reason]));
    this.foot.append(this.#bar(facts));
  }

  /** The end that a person made. `kept`: whether what there is stays in the conversation. */
  stop(kept, facts) {
    this.#close();
    const note = kept ? "Stopped." : "Stopped before it began; this question is left out of what follows.";
    this.foot.append(make("p", { class: "note" }, note), this.#bar(facts));
  }

  /** The end that nobody wanted. */
  fail(sentence) {
    this.#close();
    const left = "This question is left out of what follows.";
    this.foot.append(make("p", { class: "error" }, sentence), make("p", { class: "note" }, left), this.#bar([]));
  }

  #close() {
    clearTimeout(this.#timer);
    this.#look();
    this.waiting.remove();
    this.node.removeAttribute("aria-busy");
  }

  #look() {
    const start = performance.now();
    this.#timer = null;
    if (this.#text) this.waiting.remove();
    this.markdown.show(this.#text);
    const shapes = findShapes(this.#text);
    if (shapes.length) this.#point(shapes);
    this.#pause = Math.min(Math.max(PAUSE, 4 * (performance.now() - start)), 1000);
  }

  async #point(shapes) {
    const surfaces = await this.surfaces;
    if (!surfaces.length) return;
    this.#figure ??= this.#firstFigure(surfaces);
    this.#figure.show(shapes);
  }

  #firstFigure(surfaces) {
    const figure = new Figure(surfaces);
    this.figure.append(figure.node);
    this.node.classList.add("pointing");
    this.onpoint(figure.node);
    return figure;
  }

  #bar(facts) {
    const list = make("ul", { class: "facts", "aria-label": "What this answer took" });
    list.append(...facts.map(({ text, title }) => make("li", { title }, text)));
    const copy = this.#text && copyButton("Copy", () => this.#text);
    const actions = make("div", { class: "actions" }, copy || null, this.again);
    return make("div", { class: "bar" }, facts.length ? list : null, actions);
  }
}

const dots = () => make("span", { class: "dots", "aria-hidden": "true" }, make("i"), make("i"), make("i"));
