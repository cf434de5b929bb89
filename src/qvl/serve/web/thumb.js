// A medium at a glance: the picture, the first frame of a video, or a sheet for a PDF.

import { make } from "./dom.js";
import { icon } from "./icons.js";

const THING = { image: "Picture", video: "Video", file: "PDF" };

const describe = (medium) => `${THING[medium.kind]}: ${medium.name}`;

/** An element that shows the medium; `controls`: whether a video can be played. */
export function thumb(medium, { controls = false } = {}) {
  if (medium.kind === "file") return sheet(medium);
  if (medium.kind === "video") return video(medium, controls);
  const picture = make("img", { src: medium.url, alt: describe(medium) });
  picture.addEventListener("error", () => picture.replaceWith(sheet(medium)));
  return picture;
}

function video(medium, controls) {
  const attributes = { src: medium.url, controls, muted: true, playsinline: true, preload: "metadata" };
  return make("video", { ...attributes, "aria-label": describe(medium) });
}

/** What cannot be shown is a sheet with its name on it. */
function sheet(medium) {
  const name = make("span", { class: "sheet-name" }, medium.name);
  return make("span", { class: "sheet", role: "img", "aria-label": describe(medium) }, icon("file"), name);
}
