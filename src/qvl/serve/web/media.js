// A picture, video or PDF that somebody gave: what it is (by its first bytes, never its name), its part of a message,
// and what it costs, which the server is asked once. Knows no document but what a browser needs to show it.

import { tokenize } from "./api.js";

// First bytes, as Latin-1, and what such a file is. The server looks again; this is to say no early.
const FORMATS = [
  [/^\xff\xd8\xff/, "image", "image/jpeg"],
  [/^\x89PNG/, "image", "image/png"],
  [/^GIF8/, "image", "image/gif"],
  [/^RIFF.{4}WEBP/s, "image", "image/webp"],
  [/^BM/, "image", "image/bmp"],
  [/^%PDF/, "file", "application/pdf"],
  [/^.{4}ftyp(?!heic|heix|hevc|mif1|msf1|avif|avis|crx )/s, "video", "video/mp4"],
  [/^\x1a\x45\xdf\xa3/, "video", "video/webm"],
  [/^RIFF.{4}AVI /s, "video", "video/x-msvideo"],
];
let made = 0;

class Medium {
  /** `kind`: image, video or file (a PDF). `detail`: the budget of tokens asked for a picture. */
  constructor(blob, name, kind, detail) {
    this.blob = blob;
    this.name = name;
    this.kind = kind;
    this.detail = detail;
    this.id = `medium-${(made += 1)}`;
    this.url = URL.createObjectURL(blob);
    this.data = dataUri(blob);
    this.costs = null; // a promise of them, once somebody asked
  }

  /** Its part of a message. */
  async part() {
    const url = await this.data;
    if (this.kind === "file") return { type: "file", file: { filename: this.name, file_data: url } };
    if (this.kind === "video") return { type: "video_url", video_url: { url } };
    return { type: "image_url", image_url: { url, detail: this.detail } };
  }

  /** What each of its pictures or pages costs. Asked of the server once, unless that failed. */
  measure() {
    this.costs ??= this.#ask().catch((error) => {
      this.costs = null;
      throw error;
    });
    return this.costs;
  }

  async #ask() {
    const messages = [{ role: "user", content: [await this.part()] }];
    return (await tokenize({ messages })).media;
  }

  release() {
    URL.revokeObjectURL(this.url);
  }
}

/** The medium in a file. Throws an Error whose message is for people where there is none. */
export async function read(file, detail) {
  const head = String.fromCharCode(...new Uint8Array(await file.slice(0, 16).arrayBuffer()));
  const [, kind, type] = FORMATS.find(([magic]) => magic.test(head)) ?? [];
  const name = file.name || "pasted picture";
  if (kind) return new Medium(file.slice(0, file.size, type), name, kind, detail);
  if (file.type.startsWith("video/")) return new Medium(file, name, "video", detail);
  if (file.type.startsWith("image/")) return new Medium(await asPng(file, name), name, "image", detail);
  throw new Error(`${name} is not a picture, a video or a PDF.`);
}

/** Browsers read formats that the server does not (AVIF, HEIC on some): they are handed over as PNG. */
async function asPng(file, name) {
  try {
    const bitmap = await createImageBitmap(file);
    const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    return await new Promise((done, fail) => canvas.toBlob((blob) => (blob ? done(blob) : fail()), "image/png"));
  } catch {
    throw new Error(`${name} is a picture in a format that this browser cannot read. Try PNG or JPEG.`);
  }
}

function dataUri(blob) {
  const reader = new FileReader();
  const result = new Promise((done, fail) => {
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(new Error("The file cannot be read any more, or is too large for this browser."));
  });
  result.catch(() => {}); // whoever asks is told
  reader.readAsDataURL(blob);
  return result;
}
