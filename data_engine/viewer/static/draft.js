// A mask that is being made: clicks and a box, the model's answers to them, what is painted on them, and how all of it is
// drawn over a stage.

import { Overlay } from "./overlay.js";
import { boxOf, encode, nothing, stroke, union, without } from "./paint.js";
import { decode } from "./rle.js";

const COLOR = [255, 40, 160]; // seldom a color of a photograph
const LINE = 2; // CSS pixels
const MOST_PIXELS = 12e6; // of its canvases, which are drawn anew while somebody paints
const SVG = "http://www.w3.org/2000/svg";

export class Draft {
  /** @param {import("./stage.js").Stage} stage */
  constructor(stage) {
    this.stage = stage;
    const layer = document.createElement("div");
    layer.className = "draft";
    stage.sheet.insertBefore(layer, stage.svg); // clicks lie above it
    this.overlay = new Overlay(layer, MOST_PIXELS);
    this.open = false;
    this.clear();
  }

  /**
   * No clicks. `target`: the key of the mask that will be replaced, null for a new one.
   * `counts`: run lengths to paint on, where it begins with a mask as it is.
   */
  begin(target = null, counts = null) {
    this.clear();
    const { width, height } = this.stage.image;
    this.open = true;
    this.target = target;
    this.base = counts === null ? nothing(height, width) : decode(counts, height, width);
    this.overlay.load({ width, height, masks: { counts: [], bbox_x: [], bbox_y: [], bbox_w: [], bbox_h: [] } });
    this.draw();
  }

  end() {
    this.clear();
    this.open = false;
  }

  clear() {
    this.target = null;
    this.base = null;
    // {point: [x, y, label]}, {box: [x0, y0, x1, y1]} or {stroke: Mask, adds: boolean}, in the order in which they were made
    this.steps = [];
    this.rubber = null; // a box that is being drawn
    this.cursor = null; // [x, y, radius] of the brush
    this.answers = null;
    this.waiting = false; // for the model's answer
    this.chosen = 0;
    this.overlay.clear();
    this.mark();
  }

  /** As the server takes them; the last box counts. Null without a click on the thing or a box. */
  get prompts() {
    const points = this.steps.filter(({ point }) => point).map(({ point }) => point);
    const box = this.steps.findLast(({ box }) => box)?.box ?? null;
    return box || points.some(([, , label]) => label) ? { points, box } : null;
  }

  get painted() {
    return this.steps.some((step) => step.stroke);
  }

  /** What would be kept: the chosen answer, or what it began with, and on it what was painted. Null while it is empty. */
  get mask() {
    if (!this.base) return null;
    let mask = this.answers ? this.decoded[this.chosen] : this.prompts ? nothing(this.base.height, this.base.width) : this.base;
    for (const step of this.steps) if (step.stroke) mask = (step.adds ? union : without)(mask, step.stroke);
    return mask.area ? mask : null;
  }

  /** What the server needs to keep it. */
  get given() {
    const painted = this.painted ? { painted: encode(this.mask) } : {};
    return { key: this.target, ...this.prompts, ...(this.answers ? { answer: this.chosen } : {}), ...painted };
  }

  /** Shows masks of the model, as columns; null: none. */
  answer(masks) {
    this.answers = masks?.counts.length ? masks : null;
    this.chosen = 0;
    const { width, height } = this.stage.image;
    this.decoded = this.answers?.counts.map((counts) => decode(counts, height, width));
    this.draw();
  }

  choose(index) {
    if (!this.answers || index < 0 || index >= this.answers.counts.length) return;
    this.chosen = index;
    this.draw();
  }

  /** Begins to paint, or to take away; `paint` goes on. */
  press(at, radius, adds) {
    const { width, height } = this.stage.image;
    this.at = at;
    this.steps.push({ stroke: stroke(at, at, radius, height, width), adds });
    this.draw();
  }

  paint(to, radius) {
    const { width, height } = this.stage.image;
    const step = this.steps.at(-1);
    step.stroke = union(step.stroke, stroke(this.at, to, radius, height, width));
    this.at = to;
  }

  draw() {
    if (!this.open) return;
    const { mask } = this;
    this.overlay.masks = mask ? [mask] : [];
    this.overlay.boxes = mask ? [boxOf(mask)] : [];
    this.overlay.show(mask ? [0] : [], () => COLOR, Math.max(1, Math.round(LINE / this.stage.zoom.k)));
  }

  /** Draws clicks, boxes and the brush. */
  mark() {
    const { svg } = this.stage;
    svg.replaceChildren();
    const shape = (name, kind, attributes) => {
      const made = svg.appendChild(document.createElementNS(SVG, name));
      made.setAttribute("class", kind);
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    };
    const box = this.rubber ?? this.prompts?.box;
    if (box) {
      const [x, y] = [Math.min(box[0], box[2]), Math.min(box[1], box[3])];
      shape("rect", "box", { x, y, width: Math.abs(box[2] - box[0]), height: Math.abs(box[3] - box[1]) });
    }
    for (const { point } of this.steps) {
      if (!point) continue;
      const [cx, cy, label] = point;
      shape("circle", `click ${label ? "on" : "off"}`, { cx, cy });
      const arm = 3 / this.stage.zoom.k;
      shape("line", "minus", { x1: cx - arm, y1: cy, x2: cx + arm, y2: cy });
      if (label) shape("line", "minus", { x1: cx, y1: cy - arm, x2: cx, y2: cy + arm });
    }
    if (this.cursor) shape("circle", "brush", { cx: this.cursor[0], cy: this.cursor[1], r: this.cursor[2] });
  }
}
