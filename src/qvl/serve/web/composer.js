// Where the next question is written: grows with its text, sends with Enter, and knows whether there is something.

import { byId } from "./dom.js";

const TALLEST = 0.4; // of the window

export class Composer {
  /** `onsend`: called when somebody sends. `oninput`: after every change of the text. */
  constructor(onsend, oninput) {
    this.field = byId("question");
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      onsend();
    });
    this.field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      onsend();
    });
    this.field.addEventListener("input", () => {
      this.#grow();
      oninput();
    });
  }

  get text() {
    return this.field.value.trim();
  }

  set text(text) {
    this.field.value = text;
    this.#grow();
  }

  focus() {
    this.field.focus();
  }

  #grow() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, innerHeight * TALLEST)}px`;
  }
}
