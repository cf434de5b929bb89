// The settings panel, and what of it goes into a request. Kept in this browser; an empty field leaves the choice to
// the model or the server.

import { byId } from "./dom.js";

const KEY = "qvl.settings";
const DEFAULTS = { temperature: "", max_tokens: "", system: "", detail: "auto" };

export class Settings {
  /** `onchange`: called after every change. */
  constructor(onchange) {
    this.form = byId("settings-form");
    this.dialog = byId("settings");
    this.#fill(stored());
    this.form.addEventListener("input", () => {
      store(this.values);
      onchange();
    });
    byId("settings-reset").addEventListener("click", () => {
      this.#fill(DEFAULTS);
      store(DEFAULTS);
      onchange();
    });
    byId("open-settings").addEventListener("click", () => this.dialog.showModal());
    byId("settings-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault(); // Enter in a field is done, not sent
      this.dialog.close();
    });
  }

  get values() {
    return { ...DEFAULTS, ...Object.fromEntries(new FormData(this.form)) };
  }

  get system() {
    return this.values.system.trim();
  }

  get detail() {
    return this.values.detail;
  }

  /** The fields of a request that somebody chose. Out of range is the server's to refuse. */
  get request() {
    const numbers = ["temperature", "max_tokens"].filter((name) => this.values[name] !== "");
    return Object.fromEntries(numbers.map((name) => [name, Number(this.values[name])]));
  }

  #fill(values) {
    for (const [name, value] of Object.entries(values)) {
      if (this.form.elements[name]) this.form.elements[name].value = value;
    }
  }
}

function stored() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY)) };
  } catch {
    return DEFAULTS; // storage is switched off, or holds something else
  }
}

function store(values) {
  try {
    localStorage.setItem(KEY, JSON.stringify(values));
  } catch {
    // they last as long as the page
  }
}
