// Small charts of the last minutes, as SVG. A point that is no number is a gap; a chart without any says so.

import { h } from './elements.js';
import { isNumber } from './format.js';

const WIDTH = 320;
const HEIGHT = 72;
const TOP = 6;
const MAX_POINTS = 600;
const ROUND = [1, 2, 2.5, 5, 10];

/** The next round number above, for the end of an axis. */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return ROUND.find((step) => step * unit >= value) * unit;
}

/** The `d` of a line through `values` (numbers, or anything else for a gap) on a scale that ends at `top`. */
export function line(values, top) {
  const step = WIDTH / Math.max(1, values.length - 1);
  let path = '';
  let isDrawing = false;
  values.forEach((value, index) => {
    if (!isNumber(value)) {
      isDrawing = false;
      return;
    }
    const y = HEIGHT - Math.min(1, Math.max(0, value / top)) * (HEIGHT - TOP);
    path += `${isDrawing ? 'L' : 'M'}${(index * step).toFixed(1)} ${y.toFixed(1)}`;
    if (!isDrawing && !isNumber(values[index + 1])) path += 'h0.1'; // a point between gaps
    isDrawing = true;
  });
  return path;
}

function area(values, top) {
  const path = line(values, top);
  if (!path || values.some((value) => !isNumber(value))) return '';
  return `${path}L${WIDTH} ${HEIGHT}L0 ${HEIGHT}Z`;
}

/** A chart of series `[{values, name}]`; `label` says in words what it shows, `format` how its scale ends. */
export function chart(series, { label, format }) {
  const lists = series.map((each) => (Array.isArray(each.values) ? each.values.slice(-MAX_POINTS) : []));
  const highest = Math.max(0, ...lists.flat().filter(isNumber));
  const top = roundUp(highest);
  if (!lists.flat().some(isNumber)) {
    return h('p', { class: 'chart-empty' }, 'Nothing to draw yet.');
  }
  return h(
    'div',
    { class: 'chart' },
    h(
      'svg',
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': `${label}; the scale ends at ${format(top)}` },
      h('line', { x1: 0, x2: WIDTH, y1: TOP, y2: TOP, class: 'grid' }),
      h('line', { x1: 0, x2: WIDTH, y1: (HEIGHT + TOP) / 2, y2: (HEIGHT + TOP) / 2, class: 'grid' }),
      series.length === 1 && h('path', { d: area(lists[0], top), class: 'area' }),
      lists.map((values, index) => h('path', { d: line(values, top), class: `line line-${index}` })),
    ),
    h('span', { class: 'chart-top', 'aria-hidden': 'true' }, format(top)),
  );
}

/** A bar that is full at 1; above 0.8 it is marked. */
export function bar(share, label) {
  const part = isNumber(share) ? Math.min(1, Math.max(0, share)) : 0;
  return h(
    'svg',
    { class: `bar ${part > 0.8 ? 'bar-high' : ''}`, viewBox: '0 0 100 6', preserveAspectRatio: 'none', role: 'img', 'aria-label': label },
    h('rect', { x: 0, y: 0, width: 100, height: 6, class: 'bar-back' }),
    h('rect', { x: 0, y: 0, width: (part * 100).toFixed(1), height: 6, class: 'bar-part' }),
  );
}
