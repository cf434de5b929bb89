// Markdown inside a line (code, emphasis, links) as text and elements. Pictures become links: the page loads nothing
// from elsewhere. Lengths are bounded, so that a model that runs wild in asterisks cannot stall the page.

import { make } from "./dom.js";

const SPECIAL = /[\\`*_~![\n]|https?:\/\//g;
const SAFE_LINK = /^(?:https?:|mailto:)/i;

// In order of precedence: what may stand at a special character, and what to make of it.
const RULES = [
  [/\\([\\`*_{}[\]()#+\-.!|~<>])/y, (found) => found[1]],
  [/(?<!`)(`+)(?!`)([^]{1,2000}?)(?<!`)\1(?!`)/y, (found) => make("code", {}, found[2].replace(/^ (.+) $/, "$1"))],
  [/\*\*(?=\S)([^]{1,1000}?)(?<=\S)\*\*(?!\*)/y, (found) => make("strong", {}, ...inline(found[1]))],
  [/(?<!\w)__(?=\S)([^]{1,1000}?)(?<=\S)__(?!\w)/y, (found) => make("strong", {}, ...inline(found[1]))],
  [/~~(?=\S)([^]{1,1000}?)(?<=\S)~~/y, (found) => make("del", {}, ...inline(found[1]))],
  [/\*(?=[^\s*])([^*]{1,1000})(?<=\S)\*(?!\*)/y, (found) => make("em", {}, ...inline(found[1]))],
  [/(?<!\w)_(?=[^\s_])([^_]{1,1000})(?<=\S)_(?!\w)/y, (found) => make("em", {}, ...inline(found[1]))],
  [/!?\[([^\]\n]{0,500})\]\(([^\s()]{1,2000})(?: +"[^"\n]{0,500}")?\)/y, (found) => link(...found)],
  [/https?:\/\/[^\s<>"'`)\]]{1,2000}(?<![.,;:!?*_~])/y, (found) => link(found[0], found[0], found[0])],
  [/\n/y, () => make("br")],
];

/** The nodes of a run of text. */
export function inline(text) {
  const nodes = [];
  let done = 0;
  for (let at = special(text, 0); at >= 0; at = special(text, at)) {
    const [node, length] = read(text, at);
    if (length) {
      nodes.push(text.slice(done, at), node);
      done = at + length;
    }
    at += length || 1;
  }
  return [...nodes, text.slice(done)].filter((node) => node !== "");
}

function special(text, from) {
  SPECIAL.lastIndex = from;
  return SPECIAL.exec(text)?.index ?? -1;
}

/** The node that begins at `at` and the length of its source; 0 where the character stands for itself. */
function read(text, at) {
  for (const [rule, build] of RULES) {
    rule.lastIndex = at;
    const found = rule.exec(text);
    if (found) return [build(found), found[0].length];
  }
  return ["", 0];
}

/** A link that opens beside the page and tells nobody where it was; anything but the web stays text. */
function link(source, label, address) {
  if (!SAFE_LINK.test(address)) return source;
  const attributes = { href: address, target: "_blank", rel: "noopener noreferrer nofollow", title: address };
  return make("a", attributes, label || address);
}
