// One question on the page: what was shown with it and what was asked.

import { make } from "./dom.js";
import { thumb } from "./thumb.js";

export function questionView(number, { text, media }) {
  const shown = media.map((medium) => make("li", {}, thumb(medium, { controls: true })));
  const list = shown.length ? make("ul", { class: "shown", "aria-label": "Shown with it" }, ...shown) : null;
  const words = text ? make("p", { class: "words" }, text) : null;
  return make("article", { class: "question", "aria-label": `Question ${number}` }, list, words);
}
