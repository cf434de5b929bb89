// Markdown as a model writes it, block by block, as elements. A small part of the language on purpose: paragraphs,
// headings, lists, tables, quotes, rules and code; HTML is text. While an answer grows only its last blocks are made
// anew, so that a selection survives and a long answer stays cheap.

import { make } from "./dom.js";
import { inline } from "./inline.js";

const DEEPEST = 8; // lists in lists; deeper ones are read as text
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:\s+(.*)|\s*)$/;
const FENCE = /^\s*(`{3,}|~{3,})\s*([\w+#.-]*)/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

const RULE = /^ {0,3}([-*_])\s*(\1\s*){2,}$/;
const QUOTE = /^ {0,3}>/;

const blank = (line) => line === undefined || !line.trim();
const indented = (line) => /^(?: {2,}|\t)\S/.test(line);
const isTable = (line, next) => line.includes("|") && next?.includes("-") && DIVIDER.test(next);
const isJson = (line, next) => /^\s*(\[\s*)?\{\s*("|$)/.test(line) || (line.trim() === "[" && /^\s*\{/.test(next));
const nextLine = (lines, i) => i + 1;

// What a block begins with, where it ends (the line after its last), and what it becomes; the last takes anything.
const KINDS = [
  { begins: (line) => FENCE.test(line), end: fenceEnd, build: fence },
  { begins: (line) => /^ {0,3}#{1,6}\s/.test(line), end: nextLine, build: heading },
  { begins: (line) => RULE.test(line), end: nextLine, build: () => make("hr") },
  { begins: (line) => QUOTE.test(line), end: quoteEnd, build: quote },
  { begins: isTable, end: tableEnd, build: table },
  { begins: (line) => ITEM.test(line), end: listEnd, build: list },
  { begins: isJson, end: paragraphEnd, build: (lines) => code(lines, "json") },
  { begins: () => true, end: paragraphEnd, build: paragraph },
];

/** Keeps an element equal to a text that grows. */
export class MarkdownView {
  #shown = [];

  constructor(node) {
    this.node = node;
  }

  show(text) {
    const blocks = split(text.split("\n"));
    const sources = blocks.map(({ lines }) => lines.join("\n"));
    let same = 0;
    while (same < sources.length && sources[same] === this.#shown[same]) same += 1;
    while (this.node.childNodes.length > same) this.node.lastChild.remove();
    this.node.append(...blocks.slice(same).map(({ kind, lines }) => kind.build(lines, 0)));
    this.#shown = sources;
  }
}

function split(lines) {
  const blocks = [];
  for (let i = 0; i < lines.length; ) {
    if (blank(lines[i])) {
      i += 1;
      continue;
    }
    const kind = kindAt(lines, i);
    const end = kind.end(lines, i);
    blocks.push({ kind, lines: lines.slice(i, end) });
    i = end;
  }
  return blocks;
}

const kindAt = (lines, i) => KINDS.find((kind) => kind.begins(lines[i], lines[i + 1]));
const build = (lines, depth) => split(lines).map((block) => block.kind.build(block.lines, depth));

function whileLines(lines, i, holds) {
  while (i < lines.length && holds(lines[i])) i += 1;
  return i;
}

/** Where a paragraph ends: at a blank line, or where a block of another kind begins. */
function paragraphEnd(lines, i) {
  const plain = KINDS.slice(-2);
  return whileLines(lines, i + 1, (line) => !blank(line) && plain.includes(kindAt([line], 0)));
}

function paragraph(lines) {
  return make("p", {}, ...inline(lines.join("\n").trim()));
}

function fenceEnd(lines, i) {
  const mark = lines[i].match(FENCE)[1];
  return Math.min(whileLines(lines, i + 1, (line) => !closes(line, mark)) + 1, lines.length);
}

/** Whether a line is nothing but the mark of a fence, or a longer one. */
function closes(line, mark) {
  return line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
}

function fence(lines) {
  const [, mark, language] = lines[0].match(FENCE);
  const closed = lines.length > 1 && closes(lines.at(-1), mark);
  return code(lines.slice(1, closed ? -1 : undefined), language);
}

function code(lines, language) {
  const name = language ? `Code, ${language}` : "Code"; // it scrolls, so the keyboard must reach it
  return make("pre", { tabindex: "0", role: "region", "aria-label": name }, make("code", {}, lines.join("\n")));
}

function heading([line]) {
  const [, marks, text] = line.match(/^\s*(#{1,6})\s+(.*?)\s*#*\s*$/);
  return make(`h${Math.min(marks.length + 2, 6)}`, {}, ...inline(text)); // the page has the first two levels
}

function quoteEnd(lines, i) {
  return whileLines(lines, i, (line) => QUOTE.test(line));
}

function quote(lines, depth) {
  const inner = lines.map((line) => line.replace(/^ {0,3}> ?/, ""));
  return make("blockquote", {}, ...(depth < DEEPEST ? build(inner, depth + 1) : inline(inner.join("\n"))));
}

function tableEnd(lines, i) {
  return whileLines(lines, i + 2, (line) => !blank(line) && line.includes("|"));
}

function table([head, divider, ...rows]) {
  const sides = cells(divider).map(side);
  const cell = (tag, text, i) => make(tag, { class: sides[i] }, ...inline(text));
  const row = (tag, line) => make("tr", {}, ...cells(line).map((text, i) => cell(tag, text, i)));
  const body = make("tbody", {}, ...rows.map((line) => row("td", line)));
  const whole = make("table", {}, make("thead", {}, row("th", head)), body);
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, whole);
}

function side(cell) {
  if (!cell.endsWith(":")) return null;
  return cell.startsWith(":") ? "center" : "right";
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

/** A list goes on over indented lines and blank ones before more of it, and ends where its marks change. */
function listEnd(lines, i) {
  const ordered = isOrdered(lines[i]);
  const base = indent(lines[i]);
  for (i += 1; i < lines.length; i += 1) {
    const [line, inner] = [lines[i], blank(lines[i]) ? lines[i + 1] : lines[i]];
    if (blank(inner)) return i;
    if (ITEM.test(inner) && indent(inner) <= base && isOrdered(inner) !== ordered) return i;
    if (!ITEM.test(inner) && !indented(inner) && (blank(line) || kindAt([inner], 0) !== KINDS.at(-1))) return i;
  }
  return i;
}

const isOrdered = (line) => /^\s*\d/.test(line);
const indent = (line) => line.match(/^\s*/)[0].length;

function list(lines, depth) {
  const base = indent(lines[0]);
  const items = [];
  for (const line of lines) {
    const found = line.match(ITEM);
    if (found && found[1].length <= base + 1) items.push([found[3] ?? ""]);
    else items.at(-1).push(line.slice(Math.min(indent(line), base + 2)));
  }
  const start = isOrdered(lines[0]) ? parseInt(lines[0].trim(), 10) : null;
  const attributes = start === null || start === 1 ? {} : { start };
  return make(start === null ? "ul" : "ol", attributes, ...items.map((inner) => item(inner, depth)));
}

function item(lines, depth) {
  if (depth >= DEEPEST) return make("li", {}, ...inline(lines.join("\n").trim()));
  const [first, ...more] = build(lines, depth + 1);
  return make("li", {}, ...(first?.tagName === "P" ? first.childNodes : [first]), ...more);
}
