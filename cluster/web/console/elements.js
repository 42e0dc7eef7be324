// Elements made of text and attributes, never of markup, and a page that is made anew each second without losing focus or place.

const SVG = 'http://www.w3.org/2000/svg';
const SHAPES = new Set(['svg', 'g', 'path', 'line', 'rect', 'text', 'circle', 'title']);
const HANDLERS = ['onclick', 'onsubmit', 'oninput', 'onchange', 'onkeydown', 'ontoggle'];

/** An element. Of its properties `key` tells it from its siblings, `on...` are handlers, others attributes; null and false leave one out. */
export function h(tag, properties, ...children) {
  const element = SHAPES.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (HANDLERS.includes(name)) element[name] = value;
    else if (name === 'key') element.harborKey = String(value);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children) {
    if (Array.isArray(child)) append(element, child);
    else if (child instanceof Node) element.append(child);
    else if (child !== null && child !== undefined && child !== false) element.append(String(child));
  }
}

/** Text that somebody else has written: it may run the other way, and takes nothing around it along. */
export function foreign(text, properties) {
  return h('bdi', properties, text);
}

/** Makes `element` have these children, changing as little as can be. */
export function show(element, ...children) {
  const wanted = document.createElement('div');
  append(wanted, children);
  morphChildren(element, wanted);
}

function morphChildren(from, to) {
  const kept = new Map();
  for (const child of from.childNodes) {
    if (child.harborKey !== undefined) kept.set(child.harborKey, child);
  }
  let place = from.firstChild;
  for (const wanted of [...to.childNodes]) {
    let held = place;
    if (wanted.harborKey !== undefined) held = kept.get(wanted.harborKey) ?? null;
    else if (held && held.harborKey !== undefined) held = null;
    if (held && alike(held, wanted)) {
      if (held !== place) from.insertBefore(held, place);
      else place = place.nextSibling;
      morph(held, wanted);
    } else {
      from.insertBefore(wanted, place);
    }
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function alike(held, wanted) {
  return held.nodeType === wanted.nodeType && held.nodeName === wanted.nodeName && held.harborKey === wanted.harborKey;
}

function morph(held, wanted) {
  if (held.nodeType === Node.TEXT_NODE) {
    if (held.data !== wanted.data) held.data = wanted.data;
    return;
  }
  for (const { name } of [...held.attributes]) {
    // Whether a disclosure is open, and what is typed, is for the reader to say.
    if (!wanted.hasAttribute(name) && !(name === 'open' && held.nodeName === 'DETAILS')) held.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (held.getAttribute(name) !== value && !(name === 'value' && held === document.activeElement)) held.setAttribute(name, value);
  }
  for (const name of HANDLERS) {
    if (held[name] !== wanted[name]) held[name] = wanted[name];
  }
  if (!held.hasAttribute('data-own')) morphChildren(held, wanted);
}
