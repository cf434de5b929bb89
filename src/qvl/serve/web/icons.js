// The icons, as lines on a 24 x 24 grid: a handful of paths here cost less than a request for each.

import { draw } from "./dom.js";

const PATHS = {
  attach: "M20 11.5 12.2 19.3a5 5 0 0 1-7.1-7.1l8.2-8.2a3.4 3.4 0 0 1 4.8 4.8l-8.2 8.2a1.7 1.7 0 0 1-2.4-2.4l7.4-7.4",
  camera: "M4 8.5h3.2L9 6h6l1.8 2.5H20v10H4zM12 16.2a3.2 3.2 0 1 0 0-6.4 3.2 3.2 0 0 0 0 6.4z",
  close: "M6 6l12 12M18 6 6 18",
  copy: "M9 9h10v11H9zM15 9V4.5H5V16h4",
  file: "M6 3.5h8l4 4V20.5H6zM14 3.5v4h4M9 13h6M9 16.5h6",
  moon: "M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10z",
  picture: "M4 5h16v14H4zM4 16l4.5-4.5 3.5 3.5 3-3 5 4.5M15.5 9.5h.01",
  plus: "M12 5v14M5 12h14",
  redo: "M19 5.5v5h-5M18.6 10.5A7 7 0 1 0 19 13.5",
  send: "M12 19.5v-15M5.5 11 12 4.5 18.5 11",
  settings: "M4 7.5h9M18 7.5h2M15.5 5v5M4 16.5h2M11 16.5h9M8.5 14v5",
  stop: "M7 7h10v10H7z",
  sun: "M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6l1.4 1.4M17 17l1.4 1.4M5.6 18.4l1.4-1.4M17 7l1.4-1.4",
};

/** A drawing that says nothing to screen readers: the button around it has the name. */
export function icon(name) {
  const attributes = { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" };
  return draw("svg", attributes, draw("path", { d: PATHS[name] }));
}

/** Puts their icons into the elements that ask for one (data-icon). */
export function placeIcons(root = document) {
  for (const node of root.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));
}
