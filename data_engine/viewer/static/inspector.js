// The right side: filters, colours, facts, and the list of the masks that pass.

import { css } from "./colours.js";
import * as facts from "./facts.js";
import { linear, logarithmic, RangeFilter } from "./range_filter.js";
import { RANGES } from "./state.js";
import { VirtualList } from "./virtual_list.js";

const SMALLEST_AREA = 1e-5; // share of the image at which the slider begins
const ROW = 26;
const byId = (id) => document.getElementById(id);

export class Inspector {
  /** @param {{pick: (index: number) => void, hover: (index: number | null) => void}} parts */
  constructor(state, runs, parts) {
    this.state = state;
    this.compared = runs.length > 1;
    this.image = null;
    this.order = []; // indices of the masks that pass, as listed
    this.sort = { name: "index", descending: false };
    state.domains = domains(runs);
    this.filters = filters(state);
    this.list = new VirtualList(byId("masks"), {
      label: "Masks that pass the filters",
      rowHeight: ROW,
      create: maskRow,
      fill: (row, at) => this.#fill(row, this.order[at]),
      pick: (at) => parts.pick(this.order[at]),
      hover: (at) => parts.hover(at === null ? null : (this.order[at] ?? null)),
    });
    byId("mask-columns").addEventListener("click", (event) => this.#sortBy(event.target.dataset.sort));
    const look = { "show-masks": "masks", "show-points": "points", "show-crops": "crops" };
    for (const [id, name] of Object.entries(look)) byId(id).addEventListener("click", () => state.update({ [name]: !state[name] }));
    byId("colour").addEventListener("click", ({ target }) => target.dataset.colour && state.update({ colour: target.dataset.colour }));
    byId("colour").addEventListener("keydown", (event) => this.#nextColour(event));
    state.addEventListener("change", () => this.#look());
    this.#look();
  }

  /** Another image; `pane` knows its colours. */
  show(image, visible, pane) {
    this.image = image?.width ? image : null;
    this.pane = pane;
    const { masks } = this.image ?? {};
    const pixels = this.image ? this.image.width * this.image.height : 1;
    for (const name of RANGES) this.filters[name].count((masks?.[name] ?? []).map((value) => (name === "area" ? value / pixels : value)));
    this.update(visible);
  }

  /** Other masks pass, or they have other colours. */
  update(visible) {
    const total = this.image?.n_masks ?? 0;
    byId("mask-count").textContent = visible.length === total ? facts.grouped(total) : `${facts.grouped(visible.length)} of ${facts.grouped(total)}`;
    const { name, descending } = this.sort;
    this.order = [...visible];
    if (name !== "index") {
      const values = this.image?.masks[name] ?? [];
      this.order.sort((a, b) => values[a] - values[b]);
    }
    if (descending) this.order.reverse();
    this.list.show(this.order.length);
  }

  /** Facts of a mask, or of the image where `index` is null. */
  explain(image, index, colour = "", extra = [], run = "") {
    byId("facts-title").textContent = index === null ? "Image" : `Mask ${index}${run && `, ${run}`}`;
    byId("facts-title").style.setProperty("--chip", colour);
    byId("facts-title").classList.toggle("chip", index !== null);
    if (!image) facts.fill(byId("facts"), []);
    else facts.fill(byId("facts"), index === null ? facts.ofImage(image) : [...facts.ofMask(image, index), ...extra]);
  }

  /** Marks a mask in the list. */
  mark(index, reveal = false) {
    const at = index === null ? -1 : this.order.indexOf(index);
    this.list.select(at < 0 ? null : at, reveal);
  }

  #sortBy(name) {
    if (!name) return;
    this.sort = { name, descending: this.sort.name === name ? !this.sort.descending : name !== "index" };
    this.update([...this.order].sort((a, b) => a - b));
    for (const button of byId("mask-columns").children) button.toggleAttribute("aria-current", button.dataset.sort === name);
  }

  #fill(row, index) {
    const { masks, width, height } = this.image;
    const [chip, number, iou, stability, area] = row.children;
    chip.style.background = css(this.pane.colourOf(index));
    number.textContent = masks.mask_id[index];
    iou.textContent = facts.score(masks.predicted_iou[index]);
    stability.textContent = facts.score(masks.stability_score[index]);
    area.textContent = facts.share(masks.area[index] / (width * height));
  }

  #look() {
    const { state } = this;
    for (const name of RANGES) if (String(this.filters[name].bounds) !== String(state[name])) this.filters[name].set(state[name]);
    for (const button of byId("colour").children) {
      const on = button.dataset.colour === state.colour;
      button.setAttribute("aria-checked", on);
      button.tabIndex = on ? 0 : -1;
    }
    for (const name of ["masks", "points", "crops"]) byId(`show-${name}`).setAttribute("aria-pressed", state[name]);
    byId("reset").disabled = !state.filtered;
    byId("legend").hidden = state.colour === "id";
    byId("matches").hidden = state.colour !== "id" || !this.compared;
    if (state.colour === "id") return;
    const [low, high] = state.domains[state.colour === "score" ? "predicted_iou" : "stability_score"];
    byId("legend-low").textContent = low.toFixed(2);
    byId("legend-high").textContent = high.toFixed(2);
  }

  #nextColour(event) {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const buttons = [...byId("colour").children];
    const next = buttons[(buttons.findIndex((button) => button.tabIndex === 0) + by + buttons.length) % buttons.length];
    this.state.update({ colour: next.dataset.colour });
    next.focus();
  }
}

/** Where sliders and colours begin and end: at the thresholds that the masks have passed. */
function domains(runs) {
  const from = (name) => {
    const lowest = Math.min(...runs.map((run) => run.settings[name] ?? 0));
    return Math.min(0.95, Math.max(0, Math.floor(lowest * 20) / 20));
  };
  return { predicted_iou: [from("pred_iou_thresh"), 1], stability_score: [from("stability_score_thresh"), 1] };
}

function filters(state) {
  const labels = { predicted_iou: "Predicted IoU", stability_score: "Stability", area: "Area" };
  const made = RANGES.map((name) => [
    name,
    new RangeFilter(byId("filters"), {
      name,
      label: labels[name],
      steps: 200,
      scale: name === "area" ? logarithmic(SMALLEST_AREA, 1) : linear(...state.domains[name]),
      text: name === "area" ? facts.share : facts.score,
      change: (bounds) => state.update({ [name]: bounds }),
    }),
  ]);
  return Object.fromEntries(made);
}

function maskRow() {
  const row = document.createElement("div");
  row.innerHTML = '<i class="swatch"></i><span></span><span></span><span></span><span></span>';
  return row;
}
