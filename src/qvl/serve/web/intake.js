// The ways in which a file comes to the page: chosen, photographed, dropped anywhere on it, pasted.

import { byId } from "./dom.js";

/** Calls `take` with a list of files whenever there are some. */
export function wireIntake(take) {
  for (const id of ["files", "photo-file"]) wireInput(byId(id), take);
  for (const button of document.querySelectorAll("[data-opens]")) {
    button.addEventListener("click", () => byId(button.dataset.opens).click());
  }
  wireDrop(byId("drop-here"), take);
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return; // text goes where the cursor is
    event.preventDefault();
    take(files);
  });
}

function wireInput(input, take) {
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = ""; // so that the same file can be chosen again
    take(files);
  });
}

function wireDrop(veil, take) {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const show = (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    veil.hidden = false;
  };
  document.addEventListener("dragenter", show);
  document.addEventListener("dragover", show);
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) veil.hidden = true; // out of the window
  });
  document.addEventListener("drop", (event) => {
    veil.hidden = true;
    if (!hasFiles(event)) return;
    event.preventDefault();
    take([...event.dataTransfer.files]);
  });
}
