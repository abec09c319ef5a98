// The page: puts the list, the panes, the filters and the keyboard together. Everything that is shown follows from the state.

import * as api from "./api.js";
import { css } from "./colours.js";
import * as facts from "./facts.js";
import { ImageList } from "./image_list.js";
import { imageRows } from "./image_rows.js";
import { Inspector } from "./inspector.js";
import { listen } from "./keys.js";
import { Pane } from "./pane.js";
import { State } from "./state.js";
import { VirtualList } from "./virtual_list.js";

const byId = (id) => document.getElementById(id);
const REFRESH = 5000; // ms between looks at a dataset that is growing

const state = new State();
const list = new ImageList();
let information = null;
let panes = [];
let gallery = null;
let inspector = null;
let place = null; // of the image in the list
let hovered = null; // {run, index}
let shown = null; // a promise: the image of the state is on the page

async function begin() {
  try {
    information = await api.info();
  } catch (error) {
    byId("stages").textContent = error.message;
    return;
  }
  const { runs } = information;
  document.body.classList.toggle("compared", runs.length > 1);
  panes = runs.map((run, number) => new Pane(byId("stages"), number, runs.length > 1 ? nameOf(run, number) : "", paneParts(number)));
  inspector = new Inspector(state, runs, { pick: (index) => pick(0, index), hover: (index) => hover(0, index) });
  gallery = new VirtualList(byId("images"), { label: "Images", ...imageRows(list), pick: (index) => go(index) });
  byId("sort-difference").hidden = runs.length < 2;
  head();
  controls();
  keyboard();
  state.addEventListener("change", (event) => follow(event.detail));
  list.addEventListener("rows", () => gallery.refresh());
  list.addEventListener("failed", (event) => (byId("count").textContent = event.detail));
  list.addEventListener("reading", ({ detail: [read, all] }) => (byId("count").textContent = `reading slice ${facts.grouped(read)} of ${facts.grouped(all)} …`));
  await openList();
  if (state.image === null) await go(0);
  else shown = showImage();
  await shown;
  if (runs.some((run) => !run.complete)) setInterval(refresh, REFRESH);
  document.body.dataset.ready = "1";
}

const nameOf = (run, number) => {
  const end = (path) => path.replace(/\/+$/, "").split("/").pop();
  const others = information.runs.filter((_, i) => i !== number).map((other) => end(other.root));
  return others.includes(end(run.root)) ? run.root : end(run.root);
};

const paneParts = (number) => ({
  state,
  hover: (index, event) => hover(number, index, event),
  pick: (index) => pick(number, index),
  view: () => panes.forEach((pane, i) => i !== number && pane.stage.follow(panes[number].stage)),
});

function head() {
  const [run] = information.runs;
  const total = (name) => information.runs.map((each) => facts.grouped(each[name])).join(" | ");
  byId("dataset").textContent = information.runs.map((each) => each.root).join("   |   ");
  byId("dataset").title = `input: ${run.input}\nmodel: ${run.model} (${run.model_sha256.slice(0, 12)})`;
  const failed = information.runs.some((each) => each.failed) ? `, ${total("failed")} failed` : "";
  const growing = information.runs.map((each) => (each.complete ? "complete" : each.planned ? `${Math.floor((100 * each.images) / each.planned)} % done` : "growing"));
  byId("totals").textContent = `${total("images")} images${failed}   ${total("masks")} masks   ${growing.join(" | ")}`;
  byId("refresh").hidden = information.runs.every((each) => each.complete);
  document.title = `${run.root} – data-engine`;
  for (const path of information.pages) {
    if (byId("actions").querySelector(`[href^="${path}"]`)) continue;
    const link = document.createElement("a");
    link.className = "button";
    link.href = path;
    link.textContent = path.replace(/^\//, "").replace(/^./, (letter) => letter.toUpperCase());
    byId("actions").prepend(link);
  }
}

async function openList() {
  const query = { run: 0, search: state.search, sort: state.sort, descending: Number(state.descending), status: state.status };
  const rank = await list.open(query, state.image);
  place = rank;
  byId("count").textContent = facts.count(list.total, "image");
  gallery.show(list.total);
  gallery.select(place);
}

/** To the image at a place of the list. */
async function go(index) {
  const row = await list.wait(index);
  if (!row) return;
  place = index;
  gallery.select(index);
  state.update({ image: row.id, mask: null }, state.image !== null);
}

async function showImage() {
  const id = state.image;
  const known = place === null ? null : list.get(place);
  const position = known?.id === id ? known.position : null;
  await Promise.all(panes.map((pane, number) => pane.load(id, number ? null : position)));
  if (state.image !== id) return;
  hovered = null;
  if (panes.length > 1) panes[1].matchColours(panes[0]);
  arrange(panes[0].image ?? panes.at(-1).image);
  inspector.show(panes[0].image, panes[0].visible, panes[0]);
  const correct = byId("actions").querySelector('[href^="/correct"]');
  if (correct) correct.href = `/correct?${new URLSearchParams({ image: id })}`;
  byId("announcement").textContent = panes[0].image ? `${id}, ${facts.count(panes[0].image.n_masks, "mask")}` : id;
  showChosen();
  ahead();
}

/** Two panes beside each other, or one above the other where that shows a wide image larger. */
function arrange(image) {
  const stages = byId("stages");
  if (panes.length < 2 || !image?.width) return;
  const { clientWidth, clientHeight } = stages;
  const scale = (across, down) => Math.min(clientWidth / across / image.width, clientHeight / down / image.height);
  stages.classList.toggle("stacked", scale(1, 2) > 1.1 * scale(2, 1));
}

/** Fetches what the next key press would show. */
async function ahead() {
  if (place === null) return;
  for (const beside of [place + 1, place - 1]) {
    const row = await list.wait(beside);
    if (row) panes.forEach((pane) => pane.prepare(row.id, pane.run ? null : row.position, beside > place));
  }
}

/** What changed in the state, on the page. */
async function follow(changed) {
  const has = (...names) => names.some((name) => changed.has(name));
  if (has("search", "sort", "descending", "status")) {
    setControls();
    openList();
  }
  if (has("image")) {
    if (list.get(place ?? -1)?.id !== state.image) openList();
    shown = showImage();
    await shown;
    return;
  }
  if (has("predicted_iou", "stability_score", "area", "colour", "masks", "points", "crops")) {
    panes.forEach((pane) => pane.draw());
    inspector.update(panes[0].visible);
  }
  if (has("mask", "masks")) showChosen();
}

const chosen = () => {
  const match = /^(b?)(\d+)$/.exec(state.mask ?? "");
  const found = match && { run: match[1] ? 1 : 0, index: Number(match[2]) };
  return found && panes[found.run]?.image?.masks.mask_id[found.index] !== undefined ? found : null;
};

/** Outlines and explains the mask under the pointer, or else the chosen one. */
function showChosen() {
  const mask = hovered ?? chosen();
  if (!mask) {
    panes.forEach((pane) => pane.stage.highlight(null));
    inspector.explain(panes[0].image, null);
    inspector.mark(null);
    return;
  }
  const pane = panes[mask.run];
  const extra = [];
  panes.forEach((other) => {
    if (other === pane) return other.stage.highlight(mask.index);
    const match = other.image ? other.matching(pane, mask.index) : null;
    extra.push(["best match", match ? `mask ${match.index}, IoU ${match.iou.toFixed(3)}` : "nothing there"]);
    return other.stage.highlight(match?.index ?? null);
  });
  inspector.explain(pane.image, mask.index, css(pane.colourOf(mask.index)), extra, panes.length > 1 ? nameOf(information.runs[mask.run], mask.run) : "");
  inspector.mark(mask.run === 0 ? mask.index : null, hovered === null);
}

function pick(run, index) {
  state.update({ mask: index === null ? null : `${run ? "b" : ""}${index}` });
}

function hover(run, index, event) {
  const tip = byId("tip");
  tip.hidden = index === null || !event;
  if (!tip.hidden) {
    tip.textContent = facts.inShort(panes[run].image, index);
    const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    tip.style.transform = `translate(${x}px, ${event.clientY + 18}px)`;
  }
  if (hovered?.run === run && hovered?.index === index) return;
  if (hovered === null && index === null) return;
  hovered = index === null ? null : { run, index };
  showChosen();
}

/** To the next mask of the list, or the one before. */
function step(by) {
  const order = inspector.order;
  if (!order.length) return;
  const now = chosen();
  const at = now?.run === 0 ? order.indexOf(now.index) : -1;
  hovered = null;
  pick(0, order[at < 0 ? (by > 0 ? 0 : order.length - 1) : (at + by + order.length) % order.length]);
}

async function refresh() {
  const before = information.runs.map((run) => run.images).join();
  try {
    information = await api.refresh();
  } catch (error) {
    byId("totals").textContent = error.message;
    return;
  }
  head();
  if (information.runs.map((run) => run.images).join() !== before) await openList();
  if (state.image === null) go(0);
}

const toggle = (name) => state.update({ [name]: !state[name] });
const anyMask = { predicted_iou: [null, null], stability_score: [null, null], area: [null, null] };
const fit = () => panes.forEach((pane) => pane.stage.fit());
const zoom = (factor) => panes[0].stage.zoomBy(factor);
const opacity = (by) => {
  const input = byId("opacity");
  input.value = Number(input.value) + by;
  document.body.style.setProperty("--overlay-opacity", input.value / 100);
};

function setControls() {
  byId("search").value = state.search;
  byId("sort").value = state.sort;
  byId("status").value = state.status;
  byId("direction").setAttribute("aria-pressed", state.descending);
  byId("direction").textContent = state.descending ? "↓" : "↑";
}

function controls() {
  setControls();
  let typing;
  byId("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => state.update({ search: byId("search").value.trim() }), 150);
  });
  byId("search-form").addEventListener("submit", (event) => event.preventDefault());
  byId("sort").addEventListener("change", () => state.update({ sort: byId("sort").value, descending: !["dataset", "id"].includes(byId("sort").value) }));
  byId("status").addEventListener("change", () => state.update({ status: byId("status").value }));
  byId("direction").addEventListener("click", () => toggle("descending"));
  byId("reset").addEventListener("click", () => state.update(anyMask));
  byId("refresh").addEventListener("click", refresh);
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  byId("opacity").addEventListener("input", () => opacity(0));
  byId("masks").addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation(); // elsewhere these keys go through the images
    step(by);
  });
}

function keyboard() {
  const table = [
    { keys: ["ArrowDown", "j"], shown: "↓ j", text: "next image", act: () => go((place ?? -1) + 1) },
    { keys: ["ArrowUp", "k"], shown: "↑ k", text: "image before", act: () => go((place ?? 1) - 1) },
    { keys: ["Home"], text: "first image", act: () => go(0) },
    { keys: ["End"], text: "last image", act: () => go(list.total - 1) },
    { keys: ["ArrowRight", "l"], shown: "→ l", text: "next mask of the list", act: () => step(1) },
    { keys: ["ArrowLeft", "h"], shown: "← h", text: "mask before", act: () => step(-1) },
    { keys: ["Escape"], shown: "Esc", text: "no mask", act: () => pick(0, null) },
    { keys: ["/"], text: "search images", act: () => byId("search").focus() },
    { keys: ["1"], text: "color by number", act: () => state.update({ colour: "id" }) },
    { keys: ["2"], text: "color by predicted IoU", act: () => state.update({ colour: "score" }) },
    { keys: ["3"], text: "color by stability", act: () => state.update({ colour: "stability" }) },
    { keys: ["m"], text: "masks on and off", act: () => toggle("masks") },
    { keys: ["p"], text: "points", act: () => toggle("points") },
    { keys: ["c"], text: "crops", act: () => toggle("crops") },
    { keys: ["r"], text: "no filters", act: () => state.update(anyMask) },
    { keys: ["[", "]"], text: "less, more opaque", act: () => {} },
    { keys: ["+", "="], shown: "+ -", text: "zoom", act: () => zoom(1.3) },
    { keys: ["f", "0"], shown: "f", text: "fit the image", act: fit },
    { keys: ["u"], text: "look for new commits", act: refresh },
    { keys: ["?"], text: "this panel", act: () => byId("help").showModal() },
  ];
  const silent = [
    { keys: ["-"], act: () => zoom(1 / 1.3) },
    { keys: ["["], act: () => opacity(-10) },
    { keys: ["]"], act: () => opacity(10) },
  ];
  listen(table, silent, byId("help"), byId("keys"));
}

begin();
