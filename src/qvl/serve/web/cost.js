// What the next question will cost, before it is sent. The text is counted by the server a moment after the last key;
// media were counted once, when they came, so no picture travels again for this.

import { tokenize } from "./api.js";
import { count, whole } from "./stats.js";

const PAUSE = 350; // milliseconds without a key before the text is counted
const MARKS = 2; // tokens around each picture, where it begins and ends

export class CostLine {
  #timer = null;
  #abort = null;

  /** `next`: a function that gives {messages, media, length}: the conversation with the next question in it. */
  constructor(node, next) {
    this.node = node;
    this.next = next;
  }

  /** Counts again soon; `empty`: there is nothing to count. */
  refresh(empty) {
    clearTimeout(this.#timer);
    this.#abort?.abort();
    if (empty) this.#show("");
    else this.#timer = setTimeout(() => this.#count(), PAUSE);
  }

  async #count() {
    this.#abort = new AbortController();
    const { signal } = this.#abort;
    try {
      const { messages, media, length } = await this.next();
      const [text, ...costs] = await Promise.all([tokenize({ messages }, signal), ...media.map((m) => m.measure())]);
      if (!signal.aborted) this.#tell(text.count, costs.flat(), length);
    } catch {
      if (!signal.aborted) this.#show(""); // what is wrong is said beside the picture, or when it is sent
    }
  }

  #tell(words, costs, length) {
    const seen = costs.reduce((sum, { tokens }) => sum + tokens, 0);
    const total = words + seen + MARKS * costs.length;
    const over = length && total > length; // the server has the last word
    const note = seen ? ` (${whole(seen)} for pictures)` : "";
    const limit = over ? `, and the model takes ${whole(length)}` : "";
    this.#show(`${count(total, "token")} to read${note}${limit}`, over);
  }

  #show(text, over = false) {
    this.node.textContent = text;
    this.node.classList.toggle("over", Boolean(over));
  }
}
