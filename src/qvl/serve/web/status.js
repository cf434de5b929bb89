// What is said without being asked: one line for screen readers only, and one above the question for everybody.

import { byId } from "./dom.js";

/** Tells screen readers, once they have finished what they are saying. */
export function announce(text) {
  byId("status").textContent = text;
}

/** Shows a sentence about what somebody just did; without one, clears it. */
export function notice(text = "") {
  const node = byId("notice");
  node.textContent = text;
  node.hidden = !text;
}
