// Boxes and points in what the model writes: what qvl/processing/grounding.py reads, read the same way (a test
// holds the two together). The model speaks of pixels of the resized picture; people have the original.

const NUMBERS = /-?\d+(?:\.\d+)?/g;
// An object that is no valid JSON (cut off, a comma too many) still has readable parts.
const LOOSE_SHAPE = /"(?:bbox_2d|point_2d)"\s*:\s*\[([-\d.,\s]+)\]/g;
const LOOSE_LABEL = /"label"\s*:\s*("(?:[^"\\]|\\.)*")/;
const INSIDE = "((?:[^<]|<(?!\\|))*)"; // up to the next token
const TOKENS = new RegExp(
  `<\\|object_ref_start\\|>${INSIDE}<\\|object_ref_end\\|>|<\\|box_start\\|>${INSIDE}<\\|box_end\\|>`,
  "g",
);
const STRING_OR_BRACE = /"(?:[^"\\]|\\[^])*"|[{}]/g;
const LABEL_KEYS = ["label", "text_content", "text", "name"];

/** All shapes of an answer in reading order: {x1, y1, x2, y2, label} or {x, y, label}. */
export function findShapes(text) {
  const found = [...jsonShapes(text), ...tokenShapes(text)];
  return found.sort((a, b) => a.start - b.start).map(({ shape }) => shape);
}

/** Shapes from pixels of the resized picture to those of the original, clipped to it. */
export function toOriginal(shapes, resized, original) {
  const scaleX = original.width / resized.width;
  const scaleY = original.height / resized.height;
  const x = (value) => Math.min(Math.max(value * scaleX, 0), original.width);
  const y = (value) => Math.min(Math.max(value * scaleY, 0), original.height);
  return shapes.map((s) =>
    isPoint(s)
      ? { x: x(s.x), y: y(s.y), label: s.label }
      : { x1: x(s.x1), y1: y(s.y1), x2: x(s.x2), y2: y(s.y2), label: s.label },
  );
}

export const isPoint = (shape) => "x" in shape;

function* jsonShapes(text) {
  let start = text.indexOf("{");
  while (start >= 0) {
    let end = objectEnd(text, start);
    const value = end && parsed(text.slice(start, end));
    if (!value) end = following(text, start);
    const shapes = value ? nestedShapes(value) : looseShapes(text.slice(start, end));
    for (const shape of shapes) yield { start, shape };
    start = text.indexOf("{", end);
  }
}

/** Where the object that begins at `start` is closed; 0 if it is not. */
function objectEnd(text, start) {
  let depth = 0;
  STRING_OR_BRACE.lastIndex = start;
  for (let found; (found = STRING_OR_BRACE.exec(text)); ) {
    if (found[0] === "{") depth += 1;
    else if (found[0] === "}" && (depth -= 1) === 0) return STRING_OR_BRACE.lastIndex;
  }
  return 0;
}

function following(text, start) {
  const next = text.indexOf("{", start + 1);
  return next < 0 ? text.length : next;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function* nestedShapes(value) {
  if (Array.isArray(value)) for (const item of value) yield* nestedShapes(item);
  else if (value && typeof value === "object") {
    const label = LABEL_KEYS.map((key) => value[key]).find((text) => typeof text === "string") ?? "";
    for (const key of ["bbox_2d", "point_2d"]) yield* shapesOf(value[key], label);
    yield* nestedShapes(Object.values(value));
  }
}

/** A shape of four or two numbers, or one for each list of such. */
function* shapesOf(numbers, label) {
  if (!Array.isArray(numbers)) return;
  if (numbers.length && numbers.every(Array.isArray)) {
    for (const item of numbers) yield* shapesOf(item, label);
  } else if (numbers.every(Number.isFinite)) yield* shapeOf(numbers, label);
}

function* shapeOf(numbers, label) {
  const [x1, y1, x2, y2] = numbers;
  if (numbers.length === 2) yield { x: x1, y: y1, label: label.trim() };
  if (numbers.length !== 4) return;
  const [left, right, top, bottom] = [Math.min(x1, x2), Math.max(x1, x2), Math.min(y1, y2), Math.max(y1, y2)];
  yield { x1: left, y1: top, x2: right, y2: bottom, label: label.trim() };
}

function* looseShapes(text) {
  const label = text.match(LOOSE_LABEL)?.[1].replace(/[\u0000-\u001f]/g, escaped); // a line break in it, say
  for (const found of text.matchAll(LOOSE_SHAPE)) {
    yield* shapeOf(numbersIn(found[1]), (label && parsed(label)) || "");
  }
}

/** Shapes between box tokens; the reference before them is their label. */
function* tokenShapes(text) {
  let label = "";
  for (const found of text.matchAll(TOKENS)) {
    if (found[1] !== undefined) label = found[1];
    else for (const shape of shapeOf(numbersIn(found[2]), label)) yield { start: found.index, shape };
  }
}

const escaped = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
const numbersIn = (text) => (text.match(NUMBERS) ?? []).map(Number);
