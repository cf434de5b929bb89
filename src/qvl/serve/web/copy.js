// Buttons that copy a text and say that they did.

import { make } from "./dom.js";
import { icon } from "./icons.js";
import { announce } from "./status.js";

const SHOWN = 1500; // milliseconds that "Copied" stands

/** `text`: a function that gives what to copy when the button is pressed. */
export function copyButton(name, text) {
  const label = make("span", {}, name);
  const button = make("button", { type: "button", class: "quiet" }, icon("copy"), label);
  button.addEventListener("click", async () => {
    const said = (await copied(text())) ? "Copied" : "Copying is not allowed here";
    label.textContent = said;
    announce(said);
    setTimeout(() => (label.textContent = name), SHOWN);
  });
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedByHand(text); // over plain http, other than from this machine, there is no clipboard
  }
}

function copiedByHand(text) {
  const focused = document.activeElement;
  const area = make("textarea", { class: "visually-hidden", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}
