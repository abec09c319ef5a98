// Painting on a mask, in runs: what a brush or an eraser covers, put together with what was there.

import { Mask } from "./rle.js";

/** A mask without a pixel. */
export const nothing = (height, width) => new Mask(new Uint32Array(0), height, width);

/** The pixels whose middle is within `radius` of the line from one point to another, as a mask. */
export function stroke([x0, y0], [x1, y1], radius, height, width) {
  const length = Math.hypot(x1 - x0, y1 - y0);
  const [nx, ny] = length ? [((y0 - y1) / length) * radius, ((x1 - x0) / length) * radius] : [0, 0];
  const sides = length ? [[x0 + nx, y0 + ny], [x1 + nx, y1 + ny], [x1 - nx, y1 - ny], [x0 - nx, y0 - ny]] : [];
  const first = Math.max(0, Math.floor(Math.min(x0, x1) - radius));
  const last = Math.min(width - 1, Math.ceil(Math.max(x0, x1) + radius));
  const runs = [];
  for (let column = first; column <= last; column++) {
    const x = column + 0.5;
    let [low, high] = [Infinity, -Infinity];
    const reach = (y) => ([low, high] = [Math.min(low, y), Math.max(high, y)]);
    for (const [cx, cy] of [[x0, y0], [x1, y1]]) {
      const half = radius * radius - (x - cx) * (x - cx);
      if (half >= 0) [cy - Math.sqrt(half), cy + Math.sqrt(half)].forEach(reach);
    }
    sides.forEach(([ax, ay], i) => {
      const [bx, by] = sides[(i + 1) % sides.length];
      if (ax !== bx && Math.min(ax, bx) <= x && x <= Math.max(ax, bx)) reach(ay + ((x - ax) / (bx - ax)) * (by - ay));
    });
    const top = Math.max(0, Math.ceil(low - 0.5));
    const bottom = Math.min(height - 1, Math.floor(high - 0.5));
    if (top > bottom) continue;
    const start = column * height + top;
    if (runs.at(-1) === start) runs.pop();
    else runs.push(start);
    runs.push(column * height + bottom + 1);
  }
  return new Mask(Uint32Array.from(runs), height, width);
}

export const union = (a, b) => combined(a, b, (inA, inB) => inA || inB);
export const without = (a, b) => combined(a, b, (inA, inB) => inA && !inB);

/** The box of a mask as [x, y, width, height]; zeros for an empty one. */
export function boxOf({ runs, height }) {
  if (!runs.length) return [0, 0, 0, 0];
  const left = Math.floor(runs[0] / height);
  const right = Math.floor((runs[runs.length - 1] - 1) / height);
  let [top, bottom] = [height, -1];
  for (let i = 0; i < runs.length; i += 2) {
    const across = Math.floor(runs[i] / height) !== Math.floor((runs[i + 1] - 1) / height); // it goes round a column's end
    top = across ? 0 : Math.min(top, runs[i] % height);
    bottom = across ? height - 1 : Math.max(bottom, (runs[i + 1] - 1) % height);
  }
  return [left, top, right - left + 1, bottom - top + 1];
}

/** Compressed counts, as pycocotools writes them (maskApi.c). The inverse of rle.js's `decode`. */
export function encode({ runs, height, width }) {
  const lengths = [];
  let at = 0;
  for (const edge of runs) {
    lengths.push(edge - at);
    at = edge;
  }
  if (at < height * width || !lengths.length) lengths.push(height * width - at);
  let text = "";
  lengths.forEach((length, i) => {
    let value = i > 2 ? length - lengths[i - 2] : length;
    for (let more = true; more; ) {
      let code = value & 0x1f;
      value >>= 5;
      more = code & 0x10 ? value !== -1 : value !== 0;
      if (more) code |= 0x20;
      text += String.fromCharCode(code + 48);
    }
  });
  return text;
}

function combined(a, b, keep) {
  const edges = [];
  let [i, j, on] = [0, 0, false];
  while (i < a.runs.length || j < b.runs.length) {
    const at = Math.min(a.runs[i] ?? Infinity, b.runs[j] ?? Infinity);
    if (a.runs[i] === at) i++;
    if (b.runs[j] === at) j++;
    const now = keep(i % 2 === 1, j % 2 === 1);
    if (now !== on) edges.push(at);
    on = now;
  }
  return new Mask(Uint32Array.from(edges), a.height, a.width);
}
