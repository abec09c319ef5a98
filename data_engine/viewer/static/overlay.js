// Masks drawn over a picture: canvases for their fill, for their borders, and for the one that is highlighted.
//
// Runs go down the columns, so the canvases are as wide as the image is high and CSS swaps their axes: a run is then one
// contiguous fill of memory. Colours are opaque in the canvas; how much of the picture shows through is CSS opacity.

import { decode } from "./rle.js";

const MOST_PIXELS = 24e6; // of a canvas; larger images are drawn at every second, third, ... pixel
const LONGEST = 32_767; // pixels of a canvas's side: browsers draw nothing on longer ones
const EDGE = [255, 255, 255];

export class Overlay {
  /**
   * @param {HTMLElement} parent positioned, and as large in CSS pixels as the image in pixels
   * @param {number} most pixels of a canvas
   */
  constructor(parent, most = MOST_PIXELS) {
    this.most = most;
    this.fill = canvas(parent, "overlay-fill");
    this.lines = canvas(parent, "overlay-lines");
    this.edge = canvas(parent, "overlay-edge");
    this.clear();
  }

  /** No image. */
  clear() {
    this.masks = [];
    this.boxes = [];
    this.damaged = [];
    this.shown = [];
    this.highlighted = null;
    this.pixels = null;
    for (const each of [this.fill, this.lines, this.edge]) each.width = each.height = 0;
  }

  /** Takes the masks of an answer of /api/image. Nothing is drawn before `show`. */
  load(image) {
    this.clear();
    const { height, width } = image;
    if (!height || !width) return;
    this.height = height;
    this.width = width;
    this.step = Math.max(1, Math.ceil(Math.sqrt((height * width) / this.most)), Math.ceil(Math.max(height, width) / LONGEST));
    const rows = Math.ceil(height / this.step);
    const columns = Math.ceil(width / this.step);
    for (const each of [this.fill, this.edge]) this.#size(each, rows, columns);
    const { counts, bbox_x: x, bbox_y: y, bbox_w: w, bbox_h: h } = image.masks;
    counts.forEach((text, index) => {
      try {
        this.masks.push(decode(text, height, width));
      } catch (error) {
        this.masks.push(null);
        this.damaged.push(`mask ${index}: ${error.message}`);
      }
      this.boxes.push([x[index], y[index], w[index], h[index]]);
    });
  }

  /**
   * Draws some masks, large ones first, so that small ones stay visible.
   * @param {number[]} indices @param {(index: number) => number[]} colourOf red, green, blue
   * @param {number} border how wide borders are, in pixels of the image
   */
  show(indices, colourOf, border = 1) {
    if (!this.fill.width) return;
    this.shown = indices.filter((index) => this.masks[index]).sort((a, b) => this.masks[b].area - this.masks[a].area);
    const context = this.fill.getContext("2d");
    this.pixels ??= context.createImageData(this.fill.width, this.fill.height);
    const words = new Uint32Array(this.pixels.data.buffer);
    words.fill(0);
    for (const index of this.shown) this.#paint(words, this.masks[index], packed(colourOf(index)));
    context.putImageData(this.pixels, 0, 0);
    this.border(border);
  }

  /**
   * Draws the borders of what is shown anew, so many pixels of the image wide: where a pixel's neighbour below or to the
   * right has another colour. Wide borders, as of an image that is shown small, need not be drawn at every pixel.
   */
  border(thickness) {
    if (!this.pixels) return;
    const words = new Uint32Array(this.pixels.data.buffer);
    const stride = Math.max(1, Math.floor(thickness / this.step / 1.2));
    const half = Math.max(1, Math.round(thickness / this.step / stride / 2));
    const [height, width] = [this.fill.width, this.fill.height]; // axes are swapped
    const rows = Math.ceil(height / stride);
    const columns = Math.ceil(width / stride);
    this.#size(this.lines, rows, columns);
    const image = new ImageData(rows, columns);
    const lines = new Uint32Array(image.data.buffer);
    const mark = (column, row, across, own) => {
      const last = Math.min(across ? columns - 1 - column : rows - 1 - row, half - 1);
      for (let k = 0; k <= last; k++) lines[(column + (across ? k : 0)) * rows + row + (across ? 0 : k)] = own;
    };
    for (let column = 0; column < columns; column++) {
      const here = column * stride * height;
      const right = column + 1 < columns ? here + stride * height : here;
      let own = words[here];
      for (let row = 0; row < rows; row++) {
        const at = row * stride;
        const below = row + 1 < rows ? words[here + at + stride] : own;
        const beside = words[right + at];
        if (own !== below) {
          if (own) for (let k = Math.max(0, row - half + 1); k <= row; k++) lines[column * rows + k] = own;
          if (below) mark(column, row + 1, false, below);
        }
        if (own !== beside) {
          if (own) for (let k = Math.max(0, column - half + 1); k <= column; k++) lines[k * rows + row] = own;
          if (beside) mark(column + 1, row, true, beside);
        }
        own = below;
      }
    }
    this.lines.getContext("2d").putImageData(image, 0, 0);
  }

  /** Outlines one mask, or none (null). `thickness` in pixels of the image. */
  highlight(index, thickness = 2) {
    const context = this.edge.getContext("2d");
    if (this.highlighted !== null) context.clearRect(0, 0, this.edge.width, this.edge.height);
    this.highlighted = this.masks[index] ? index : null;
    if (this.highlighted === null) return;
    const { image, column, row } = this.#outline(index, Math.max(1, Math.round(thickness / this.step)));
    context.putImageData(image, row, column);
  }

  /** The smallest mask shown at a pixel, or null. */
  at(x, y) {
    for (let i = this.shown.length - 1; i >= 0; i--) {
      const [left, top, width, height] = this.boxes[this.shown[i]];
      if (x < left || y < top || x >= left + width || y >= top + height) continue;
      if (this.masks[this.shown[i]].contains(Math.floor(x), Math.floor(y))) return this.shown[i];
    }
    return null;
  }

  /** Makes a canvas `rows` wide and `columns` high, and lays it over the whole image. */
  #size(canvas, rows, columns) {
    if (canvas.width === rows && canvas.height === columns) return;
    canvas.width = rows;
    canvas.height = columns;
    canvas.style.transform = `matrix(0, ${this.height / rows}, ${this.width / columns}, 0, 0, 0)`;
  }

  #paint(words, mask, colour) {
    const { runs } = mask;
    if (this.step === 1) {
      for (let i = 0; i < runs.length; i += 2) words.fill(colour, runs[i], runs[i + 1]);
      return;
    }
    const rows = this.fill.width;
    this.#sampled(runs, (column, first, last) => words.fill(colour, column * rows + first, column * rows + last));
  }

  /** Calls `each(column, first row, end row)` for what is left of runs at every `step`th pixel. */
  #sampled(runs, each) {
    const { step, height } = this;
    for (let i = 0; i < runs.length; i += 2) {
      for (let column = Math.floor(runs[i] / height); column * height < runs[i + 1]; column++) {
        if (column % step) continue;
        const first = Math.ceil(Math.max(0, runs[i] - column * height) / step);
        const last = Math.ceil(Math.min(height, runs[i + 1] - column * height) / step);
        if (last > first) each(column / step, first, last);
      }
    }
  }

  /** A mask's box with its border white and its inside faintly so; the canvas is only touched there. */
  #outline(index, thickness) {
    const [x, y, w, h] = this.boxes[index];
    const column = Math.floor(x / this.step);
    const row = Math.floor(y / this.step);
    const columns = Math.max(1, Math.ceil((x + w) / this.step) - column);
    const rows = Math.max(1, Math.ceil((y + h) / this.step) - row);
    const inside = new Uint8Array(columns * rows);
    this.#sampled(this.masks[index].runs, (at, first, last) =>
      inside.fill(1, (at - column) * rows + first - row, (at - column) * rows + last - row),
    );
    let core = inside;
    for (let i = 0; i < thickness; i++) core = eroded(core, columns, rows);
    const image = new ImageData(rows, columns);
    const words = new Uint32Array(image.data.buffer);
    const edge = packed(EDGE);
    const glow = packed(EDGE, 56);
    for (let i = 0; i < words.length; i++) words[i] = core[i] ? glow : inside[i] ? edge : 0;
    return { image, column, row };
  }
}

function canvas(parent, name) {
  const made = document.createElement("canvas");
  made.className = name;
  made.setAttribute("aria-hidden", "true");
  parent.append(made);
  return made;
}

/** Pixels whose four neighbours are inside too. What lies beyond the box is outside. */
function eroded(inside, columns, rows) {
  const smaller = new Uint8Array(inside.length);
  for (let column = 1; column < columns - 1; column++) {
    for (let i = column * rows + 1; i < (column + 1) * rows - 1; i++) {
      smaller[i] = inside[i] & inside[i - 1] & inside[i + 1] & inside[i - rows] & inside[i + rows];
    }
  }
  return smaller;
}

/** Four bytes as ImageData has them, in one number. */
function packed([red, green, blue], alpha = 255) {
  const bytes = new Uint8Array([red, green, blue, alpha]);
  return new Uint32Array(bytes.buffer)[0];
}
