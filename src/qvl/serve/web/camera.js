// A photograph from the camera of a computer. Phones have a better way, their own camera (the file input that has
// `capture`), and are sent there.

import { byId } from "./dom.js";
import { notice } from "./status.js";

/** Makes the button take a picture and call `take` with it; hides it where there can be no camera. */
export function wireCamera(take) {
  const button = byId("photo");
  if (matchMedia("(pointer: coarse)").matches) {
    button.addEventListener("click", () => byId("photo-file").click());
  } else if (navigator.mediaDevices?.getUserMedia) {
    const camera = new Camera(take);
    button.addEventListener("click", () => camera.open());
  } else button.hidden = true;
}

class Camera {
  constructor(take) {
    this.dialog = byId("camera");
    this.video = byId("camera-view");
    byId("camera-close").addEventListener("click", () => this.dialog.close());
    byId("camera-shoot").addEventListener("click", async () => {
      take([await this.#photograph()]);
      this.dialog.close();
    });
    this.dialog.addEventListener("close", () => this.#off());
  }

  async open() {
    notice();
    try {
      this.video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      this.dialog.showModal();
    } catch {
      notice("There is no camera, or this page may not use it.");
    }
  }

  #photograph() {
    const { videoWidth: width, videoHeight: height } = this.video;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    const named = (blob) => new File([blob], "photo.jpg", { type: "image/jpeg" });
    return new Promise((done) => canvas.toBlob((blob) => done(named(blob)), "image/jpeg", 0.92));
  }

  #off() {
    for (const track of this.video.srcObject?.getTracks() ?? []) track.stop();
    this.video.srcObject = null;
  }
}
