// COCO compressed run lengths -> runs of ones. Knows nothing of pages, canvases or datasets.
//
// The format is pycocotools' (maskApi.c): characters from "0" on carry 5 bits and a flag for "more follows", the last one's
// 0x10 is the sign; from the third run on, a run is stored as the difference to the one before the last. Runs alternate,
// zeros first, and go down the columns: position = x * height + y.

const MOST_CHARACTERS = 6; // a run: 30 bits, more than an image has pixels

/** The ones of a mask, as [start, end, start, end, ...] with ends exclusive, in column-major positions. */
export class Mask {
  /** @param {Uint32Array} runs @param {number} height @param {number} width */
  constructor(runs, height, width) {
    this.runs = runs;
    this.height = height;
    this.width = width;
    let area = 0;
    for (let i = 0; i < runs.length; i += 2) area += runs[i + 1] - runs[i];
    this.area = area;
  }

  /** Whether the pixel in column x and row y is in the mask. */
  contains(x, y) {
    if (x < 0 || y < 0 || x >= this.width || y >= this.height) return false;
    const position = x * this.height + y;
    let low = 0;
    let high = this.runs.length; // runs before `low` start at or before the position
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.runs[middle] <= position) low = middle + 1;
      else high = middle;
    }
    return low % 2 === 1;
  }
}

/** Compressed counts -> Mask. Throws Error for counts that do not fill height x width pixels. */
export function decode(counts, height, width) {
  const pixels = height * width;
  const lengths = [];
  const edges = [];
  let at = 0;
  let position = 0;
  while (at < counts.length) {
    let value = 0;
    let characters = 0;
    let code;
    do {
      code = counts.charCodeAt(at++) - 48;
      if (!(code >= 0 && code < 64) || characters === MOST_CHARACTERS) throw new Error(`damaged run lengths at ${at - 1}`);
      value |= (code & 0x1f) << (5 * characters++);
    } while (code & 0x20);
    if (code & 0x10) value |= -1 << (5 * characters);
    if (lengths.length > 2) value += lengths[lengths.length - 2];
    if (value < 0 || position + value > pixels) throw new Error(`run lengths leave the image of ${width} x ${height}`);
    if (lengths.length % 2 === 1 && value) {
      if (edges.length && edges[edges.length - 1] === position) edges[edges.length - 1] = position + value;
      else edges.push(position, position + value);
    }
    lengths.push(value);
    position += value;
  }
  if (position !== pixels) throw new Error(`run lengths fill ${position} of ${pixels} pixels`);
  return new Mask(Uint32Array.from(edges), height, width);
}

/** Intersection over union of two masks of one image, 0 where both are empty. */
export function iou(a, b) {
  const first = a.runs;
  const second = b.runs;
  let common = 0;
  let i = 0;
  let j = 0;
  while (i < first.length && j < second.length) {
    const start = Math.max(first[i], second[j]);
    const end = Math.min(first[i + 1], second[j + 1]);
    if (end > start) common += end - start;
    if (first[i + 1] < second[j + 1]) i += 2;
    else j += 2;
  }
  const union = a.area + b.area - common;
  return union ? common / union : 0;
}
