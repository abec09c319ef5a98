// One run's view of the image: a stage under a heading, and which of its masks pass the filters.

import * as api from "./api.js";
import { css, ofNumber, ofShare } from "./colours.js";
import * as facts from "./facts.js";
import { iou } from "./rle.js";
import { firstSide, Stage } from "./stage.js";
import { RANGES } from "./state.js";

const SAME = 0.5; // IoU from which on a mask counts as the one of the other run
const ALONE = [236, 238, 242];

export class Pane {
  /**
   * @param {HTMLElement} parent @param {number} run @param {string} name of the run, shown when there are two
   * @param {object} parts as of Stage, and `state`
   */
  constructor(parent, run, name, parts) {
    this.run = run;
    this.state = parts.state;
    this.root = document.createElement("section");
    this.root.className = "pane";
    this.root.innerHTML = '<header class="caption"><b></b><span class="id"></span><span class="muted facts-line"></span></header><div></div>';
    this.root.querySelector("b").textContent = name;
    this.root.querySelector("b").hidden = !name;
    this.stage = new Stage(this.root.lastElementChild, { ...parts, label: name ? `Image and masks of ${name}` : "Image and masks" });
    this.visible = [];
    parent.append(this.root);
  }

  get image() {
    return this.stage.image;
  }

  /** Shows an image by id; resolves once its masks are there, the picture follows. */
  async load(id, position) {
    this.wanted = id;
    this.visible = [];
    this.twins = null;
    let image;
    try {
      image = await api.image(this.run, id, position);
    } catch (error) {
      if (this.wanted === id) this.#failed(id, error);
      return;
    }
    if (this.wanted !== id) return;
    this.loaded = this.stage.load(image, (side) => api.pictureAddress(this.run, id, side, image.position));
    this.draw();
    performance.mark("masks-drawn");
  }

  /** Fetches what `load` will want, and the picture too if it is `next`. */
  async prepare(id, position, next) {
    try {
      const image = await api.image(this.run, id, position);
      if (next && image.width) await api.picture(api.pictureAddress(this.run, id, firstSide(image), image.position));
    } catch {
      // `load` will say so
    }
  }

  #failed(id, error) {
    this.stage.clear(error.message);
    this.stage.notice.classList.add("failed");
    this.#caption(id, "");
  }

  /** Filters and colours anew. */
  draw() {
    const { image, stage, state } = this;
    if (!image) return;
    const { masks } = image;
    const pixels = image.width * image.height || 1;
    const tests = RANGES.filter((name) => state[name].some((bound) => bound !== null)).map((name) => {
      const [low, high] = state[name].map((bound, i) => bound ?? (i ? Infinity : -Infinity));
      const values = masks[name];
      const unit = name === "area" ? pixels : 1;
      return (i) => values[i] / unit >= low && values[i] / unit <= high;
    });
    this.visible = masks.mask_id.map((_, i) => i).filter((i) => tests.every((test) => test(i)));
    stage.draw(state.masks ? this.visible : [], (i) => this.colourOf(i));
    stage.mark(this.visible, state, (i) => css(this.colourOf(i)));
    const passed = this.visible.length === image.n_masks ? facts.count(image.n_masks, "mask") : `${facts.grouped(this.visible.length)} of ${facts.count(image.n_masks, "mask")}`;
    this.#caption(image.image_id, image.status === "failed" ? "failed" : `${image.width} × ${image.height}   ${passed}`);
  }

  /** [red, green, blue] of a mask, as the state says. */
  colourOf(index) {
    const { colour } = this.state;
    if (colour === "id" && this.twins) return this.twins[index] === null ? ALONE : ofNumber(this.twins[index]);
    if (colour === "id") return ofNumber(this.image.masks.mask_id[index]);
    const name = colour === "score" ? "predicted_iou" : "stability_score";
    const [low, high] = this.state.domains[name];
    return ofShare((this.image.masks[name][index] - low) / (high - low));
  }

  /** The mask here that is most like one of another pane's image: {index, iou}, or null. */
  matching(other, mask) {
    const theirs = other.stage.overlay.masks[mask];
    const box = other.stage.overlay.boxes[mask];
    const { masks, boxes } = this.stage.overlay;
    let best = null;
    masks.forEach((own, index) => {
      if (!own || !theirs || own.height !== theirs.height || own.width !== theirs.width) return;
      const most = Math.min(own.area, theirs.area, common(boxes[index], box)) / Math.max(own.area, theirs.area);
      if (most <= (best?.iou ?? 0)) return; // it cannot be better
      const value = iou(own, theirs);
      if (value > (best?.iou ?? 0)) best = { index, iou: value };
    });
    return best;
  }

  /** Gives every mask the color of its best match in another pane, from now on; those without one are white. */
  matchColours(other) {
    if (!this.image || !other.image) return;
    this.twins = this.image.masks.mask_id.map((_, index) => {
      const match = other.matching(this, index);
      return match && match.iou >= SAME ? match.index : null;
    });
    this.draw();
  }

  #caption(id, text) {
    this.root.querySelector(".id").textContent = id;
    this.root.querySelector(".facts-line").textContent = text;
  }
}

/** Pixels that two boxes (x, y, w, h) share. */
function common(a, b) {
  const width = Math.min(a[0] + a[2], b[0] + b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[1] + a[3], b[1] + b[3]) - Math.max(a[1], b[1]);
  return Math.max(0, width) * Math.max(0, height);
}
