// A JSON value as lines, with what changed marked. However large it is, only so much of it is walked and shown.

import { foreign, h } from './elements.js';
import { count } from './format.js';

const MAX_LINES = 400;
const ENDS = 40;
const MAX_TEXT = 240;
const MAX_DEPTH = 24;
const INDENTS = 12;
const SAMPLE = 100;
const LESS = '\u0000';

/** The lines of a value: {depth, name, text, kind, path}. Of long arrays and objects the first and last members, of long texts the beginning. */
export function lines(value) {
  const found = [];
  walk(value, '', '', 0, found, '');
  if (found.length >= MAX_LINES) found.push({ depth: 0, name: '', text: `… clipped after ${count(MAX_LINES)} lines`, kind: 'note', path: null });
  return found;
}

function walk(value, name, path, depth, found, comma) {
  if (found.length >= MAX_LINES) return;
  if (value === null || typeof value !== 'object') {
    found.push({ depth, name, ...scalar(value), path, comma });
    return;
  }
  const isArray = Array.isArray(value);
  const names = isArray ? null : Object.keys(value);
  const size = isArray ? value.length : names.length;
  const [opening, closing] = isArray ? ['[', ']'] : ['{', '}'];
  if (!size || depth >= MAX_DEPTH) {
    found.push({ depth, name, text: size ? `${opening} … ${closing}` : opening + closing, kind: 'mark', path, comma });
    return;
  }
  found.push({ depth, name, text: opening, kind: 'mark', path, note: size > ENDS ? `${count(size)} ${isArray ? 'items' : 'members'}` : '' });
  const left = size > 2 * ENDS ? size - 2 * ENDS : 0;
  for (let index = 0; index < size; index += 1) {
    if (left && index === ENDS) {
      found.push({ depth: depth + 1, name: '', text: `… ${count(left)} more`, kind: 'note', path: null });
      index += left;
    }
    const member = isArray ? index : names[index];
    const at = `${path}/${isArray ? index : escaped(member)}`;
    walk(value[member], isArray ? '' : member, at, depth + 1, found, index < size - 1 ? ',' : '');
    if (found.length >= MAX_LINES) return;
  }
  found.push({ depth, name: '', text: closing, kind: 'mark', path: null, comma });
}

function escaped(member) {
  return member.length > 1000 ? '' : member.replaceAll('~', '~0').replaceAll('/', '~1');
}

function scalar(value) {
  if (typeof value !== 'string') return { text: String(value), kind: value === null ? 'null' : typeof value };
  if (value.length <= MAX_TEXT) return { text: JSON.stringify(value), kind: 'string' };
  const shown = value.slice(0, MAX_TEXT).replace(/[\ud800-\udbff]$/, '');
  return { text: JSON.stringify(shown), kind: 'string', note: `… ${count(value.length - shown.length)} more characters` };
}

/** Whether a line shows something that a patch touched: a place that it set, what is inside of it, or what it took something from. */
export function isTouched(path, touched) {
  if (path === null) return false;
  for (const each of touched) {
    if (each.endsWith(LESS) ? `${path}${LESS}` === each : each === path || path.startsWith(`${each}/`)) return true;
  }
  return false;
}

/** The paths that a patch touched, in a value as it is now; `/-` is the last item. What lost a member is named with `LESS` behind it. */
export function touchedBy(patch, value) {
  const paths = new Set();
  const ends = new Map(); // by array: where what is appended before the operations seen so far stands
  for (const each of Array.isArray(patch) ? patch.slice(-100).reverse() : []) {
    const { op, path } = each ?? {};
    if (typeof path !== 'string') continue;
    if (op === 'remove') paths.add(`${path.slice(0, path.lastIndexOf('/'))}${LESS}`);
    else if (path.endsWith('/-')) {
      const end = ends.get(path) ?? lengthAt(value, path.slice(0, -2)) - 1;
      ends.set(path, end - 1);
      paths.add(`${path.slice(0, -1)}${Math.max(0, end)}`);
    } else paths.add(path);
  }
  return paths;
}

function lengthAt(value, path) {
  let at = value;
  for (const name of path.split('/').slice(1)) {
    at = at?.[name.replaceAll('~1', '/').replaceAll('~0', '~')];
  }
  return Array.isArray(at) ? at.length : 0;
}

/** About how many bytes a value has as JSON. Of long arrays and objects a hundred members speak for all: then it is an estimate. */
export function measure(value) {
  if (value === undefined) return { size: 0, isExact: true };
  const found = { isExact: true };
  found.size = weigh(value, 0, found);
  return found;
}

function weigh(value, depth, found) {
  if (typeof value === 'string') return value.length + 2;
  if (value === null || typeof value !== 'object') return String(value).length;
  const isArray = Array.isArray(value);
  const names = isArray ? null : Object.keys(value);
  const size = isArray ? value.length : names.length;
  if (depth > MAX_DEPTH) found.isExact = false;
  if (!size || depth > MAX_DEPTH) return 2;
  const step = Math.max(1, size / (depth < 2 ? SAMPLE : SAMPLE / 10));
  if (step > 1) found.isExact = false;
  let sum = 0;
  let walked = 0;
  for (let place = 0; place < size; place += step) {
    const index = Math.floor(place);
    sum += 1 + (isArray ? 0 : names[index].length + 3) + weigh(value[isArray ? index : names[index]], depth + 1, found);
    walked += 1;
  }
  return 1 + Math.round((sum / walked) * size);
}

/** The elements that show a value; `touched` are the paths to mark. */
export function shown(value, touched = new Set()) {
  return lines(value).map((each) =>
    h(
      'div',
      { class: `json-line indent-${Math.min(each.depth, INDENTS)}${isTouched(each.path, touched) ? ' touched' : ''}` },
      each.name !== '' && [foreign(JSON.stringify(each.name.length > MAX_TEXT ? `${each.name.slice(0, MAX_TEXT)}…` : each.name), { class: 'json-name' }), ': '],
      each.kind === 'string' ? foreign(each.text, { class: 'json-string' }) : h('span', { class: `json-${each.kind}` }, each.text),
      each.comma,
      each.note && h('span', { class: 'json-note' }, ` ${each.note}`),
    ),
  );
}
