// Numbers, times and keys as people read them. Whatever comes is shown somehow: a value that is not what was expected is a dash.

const NUMBER = new Intl.NumberFormat('en');
const SHORT = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 });
export const NONE = '–';
const CLIP = 160;

export function isNumber(value) {
  return typeof value === 'number' && Number.isFinite(value);
}

export function count(value) {
  return isNumber(value) ? NUMBER.format(value) : NONE;
}

export function short(value) {
  if (!isNumber(value)) return NONE;
  return Math.abs(value) < 10_000 ? NUMBER.format(Math.abs(value) < 100 ? Math.round(value * 10) / 10 : Math.round(value)) : SHORT.format(value);
}

export function percent(share) {
  return isNumber(share) ? `${Math.round(share * 100)} %` : NONE;
}

export function bytes(value) {
  if (!isNumber(value)) return NONE;
  let size = value;
  for (const unit of ['B', 'KiB', 'MiB', 'GiB']) {
    if (size < 1024 || unit === 'GiB') return `${size < 10 && unit !== 'B' ? size.toFixed(1) : Math.round(size)} ${unit}`;
    size /= 1024;
  }
  return NONE;
}

export function milliseconds(value) {
  if (!isNumber(value)) return NONE;
  if (value < 1_000) return `${value < 10 ? Math.round(value * 10) / 10 : Math.round(value)} ms`;
  return duration(value);
}

export function duration(value) {
  if (!isNumber(value)) return NONE;
  const seconds = Math.max(0, value) / 1000;
  if (seconds < 60) return `${seconds < 10 ? Math.round(seconds * 10) / 10 : Math.round(seconds)} s`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3_600)} h ${Math.floor((seconds % 3_600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3_600)} h`;
}

export function clock(time) {
  return isNumber(time) ? new Date(time).toLocaleTimeString('en-GB') : NONE;
}

/** A key as text: JSON with spaces, clipped where it is only a label. */
export function keyText(key, most = Infinity) {
  let text;
  try {
    text = JSON.stringify(key);
  } catch {
    text = undefined;
  }
  return clip(text ?? NONE, most);
}

export function clip(text, most = CLIP) {
  const shown = typeof text === 'string' ? text : String(text ?? NONE);
  if (shown.length <= most) return shown;
  return `${shown.slice(0, most)}…`.replace(/[\ud800-\udbff]…$/, '…');
}
