// Makes elements from names and text only: no markup is ever parsed, so that whatever a model writes stays text.

const SVG = "http://www.w3.org/2000/svg";

/** The element with that id. A name that the document lacks is a mistake, and said at once. */
export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`The page has no element "${id}"`);
  return node;
}

/** A new element. `on...` are listeners; true is an empty attribute; false, null and undefined are none. */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

/** A new element of a drawing. */
export function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
