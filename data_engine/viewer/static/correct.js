// Masks of one image at a time: people add, replace and delete them. Each edit is stored before the page goes on.

import { pictureAddress } from "./api.js";
import { Watch } from "./audit_watch.js";
import { ofNumber } from "./colours.js";
import { asked, posted } from "./correct_requests.js";
import { Draft } from "./draft.js";
import { count, fill, grouped, score, share } from "./facts.js";
import { listen } from "./keys.js";
import { Stage } from "./stage.js";

const DRAG = 4; // CSS pixels before a press becomes a box
const [FINEST, WIDEST] = [1, 200]; // CSS pixels of the brush's radius
const LOOKING = "The model looks at the image …";
const $ = (id) => document.getElementById(id);

const state = { who: null, images: 0, image: null, selected: null, hovered: null, busy: true };
const watch = new Watch(document);
const stage = new Stage($("stage"), { label: "The image and its masks", grab, pick, hover, view: drawSoon });
const draft = new Draft(stage);
const FIRST_NUMBER = 1000; // of the colors of masks that people made
const numbers = new Map(); // by their keys
let tool = "click"; // brush, eraser
let radius = 12; // of the brush, in CSS pixels
let answering = null; // aborts the request whose answer nobody waits for any more
let keepsAdding = false; // after a mask is kept, and on the next image

// What is shown

async function show({ id, position }) {
  state.busy = true;
  stopDraft();
  problem("");
  watch.stop();
  try {
    const image = await asked("/image", { id, position, who: state.who });
    state.image = image;
    state.selected = state.hovered = null;
    history.replaceState(null, "", `?${new URLSearchParams({ image: id })}`);
    $("home").href = `/?${new URLSearchParams({ image: id })}`;
    const loaded = stage.load(image, (side) => pictureAddress(0, id, side, position ?? image.position));
    draw();
    await loaded;
    stage.root.dataset.image = id; // which is completely there
  } catch (error) {
    state.image = null;
    stage.clear(error.message);
  }
  state.busy = false;
  if (!state.image) return writePanel();
  watch.start();
  if (keepsAdding) startDraft(null);
  else writePanel();
  prepare();
}

/** Lets the model see the image before the first click, and then the one that will come next. */
async function prepare() {
  const { image } = state;
  if (image.status !== "ok") return;
  const slow = setTimeout(() => state.image === image && stage.say(LOOKING), 300);
  try {
    await posted("/prepare", { ...which(), who: state.who });
    if (stage.notice.textContent === LOOKING) stage.say("");
  } catch (error) {
    if (state.image?.image_id === image.image_id) stage.say(`Nothing can be added: ${error.message}`);
    return;
  } finally {
    clearTimeout(slow);
  }
  const next = await asked("/next", { ...which(), who: state.who, step: 1, left: 1 }).catch(() => ({}));
  if (next.image && state.image?.image_id === image.image_id) posted("/prepare", { ...next.image, who: state.who }).catch(() => {}); // it will say so itself
}

const which = () => ({ id: state.image.image_id, position: state.image.position });

/** The masks anew, but the one that is being replaced. */
function draw() {
  if (!state.image?.width) return;
  const { key } = state.image.masks;
  const seen = key.map((_, i) => i).filter((i) => !draft.open || draft.target === null || key[i] !== draft.target);
  stage.draw(seen, (i) => ofNumber(numberOf(key[i])));
  stage.highlight(draft.open ? null : (state.hovered ?? state.selected));
}

/** What gives a mask its color, which it keeps when others go. */
function numberOf(key) {
  if (typeof key === "number") return key;
  if (!numbers.has(key)) numbers.set(key, FIRST_NUMBER + numbers.size);
  return numbers.get(key);
}

let frame = null;

/** Lines keep their thickness on the screen, however near one looks. */
function drawSoon() {
  frame ??= requestAnimationFrame(() => {
    frame = null;
    draft.draw();
    draft.mark();
    if (!draft.open) stage.highlight(state.hovered ?? state.selected);
  });
}

function hint() {
  const { image } = state;
  if (!image) return "";
  if (image.status !== "ok") return "This image failed when it was masked. There is nothing to correct.";
  if (!draft.open && state.selected !== null) return "X deletes this mask, E makes it anew from clicks, B and R paint on it.";
  if (!draft.open) return "Click a mask to select it. A adds one that is missing.";
  if (draft.open && tool !== "click") return `Drag to ${tool === "brush" ? "add to" : "take from"} the mask. [ and ] change the size. Enter keeps it.`;
  if (!draft.steps.length && draft.target !== null) return "Click on the thing as it should be, or draw a box around it.";
  if (!draft.steps.length) return "Click on a thing without a mask, or draw a box around it. Esc ends adding.";
  if (draft.painted) return "Enter keeps it.";
  if (!draft.prompts) return "Click on the thing, too.";
  if (draft.answers === null) return draft.waiting ? "The model answers …" : "The model finds nothing there. Z takes the last click back, B paints.";
  if (draft.answers.counts.length > 1) return "Choose with 1, 2, 3. More clicks make it exact; right click: not part of it.";
  return "Click where it is missing, right click where it is too much. Enter keeps it.";
}

function writePanel() {
  const { image, busy } = state;
  $("progress").max = Math.max(1, state.images);
  $("progress").value = image?.done ?? 0;
  $("progress-text").textContent = `${grouped(image?.done ?? 0)} of ${count(state.images, "image")} done`;
  $("done-by").textContent = image?.done_by.length ? `this one, by ${image.done_by.join(", ")}` : "";
  $("image-id").textContent = image ? `${image.image_id}, ${count(image.n_masks, "mask")}` : "";
  $("hint").textContent = hint();
  $("draft-buttons").hidden = !draft.open;
  for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === tool);
  $("accept").disabled = busy || draft.waiting || !draft.mask; // nothing is kept that nobody has seen
  $("add").setAttribute("aria-pressed", draft.open && draft.target === null);
  $("add").disabled = image?.status !== "ok";
  $("replace").disabled = $("delete").disabled = draft.open || state.selected === null;
  $("undo").disabled = draft.steps.length === 0 && (draft.target !== null || !image?.undo);
  const words = { add: "added mask", replace: "replacement", delete: "deletion", done: "“done”" };
  $("undo").title = draft.steps.length ? "Takes the last click back" : image?.undo ? `Takes back your last step here: ${words[image.undo]}` : "";
  $("done").disabled = busy || draft.steps.length > 0 || image?.status !== "ok";
  writeCandidates();
  writeFacts();
}

function writeCandidates() {
  const found = draft.answers && draft.answers.counts.length > 1 ? draft.answers : { counts: [] };
  const buttons = found.counts.map((_, i) => {
    const button = document.createElement("button");
    const cap = document.createElement("kbd");
    button.className = "button";
    button.setAttribute("role", "radio");
    button.setAttribute("aria-checked", i === draft.chosen);
    cap.textContent = i + 1;
    button.append(`${share(found.area[i] / (state.image.width * state.image.height))} of the image, IoU ${score(found.predicted_iou[i])}`, cap);
    button.onclick = () => choose(i);
    return button;
  });
  $("candidates").replaceChildren(...buttons);
}

function writeFacts() {
  const index = draft.open ? null : (state.hovered ?? state.selected);
  $("facts-section").hidden = index === null;
  if (index === null) return;
  const { masks, width, height } = state.image;
  $("facts-title").textContent = `Mask ${index + 1}`;
  const rows = [
    ["area", `${grouped(masks.area[index])} px, ${share(masks.area[index] / (width * height))}`],
    ["predicted IoU", score(masks.predicted_iou[index])],
    ["stability", score(masks.stability_score[index])],
    ["made by", masks.who[index] === null ? "the model alone" : masks.who[index]],
  ];
  if (masks.made_at[index]) rows.push(["on", new Date(masks.made_at[index]).toLocaleString()]);
  fill($("facts"), rows);
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

// The pointer

function pick(index, event) {
  if (draft.open) {
    if (event.shiftKey && tool === "click") click(event, 0);
    return;
  }
  if (!state.image || state.busy) return;
  state.selected = index;
  draw();
  writePanel();
}

function hover(index) {
  if (draft.open || state.hovered === index || !state.image) return;
  state.hovered = index;
  stage.highlight(index ?? state.selected);
  writeFacts();
}

/** While a mask is made, a press is a click on the thing, the corner of a box, or the brush. */
function grab(event) {
  if (!draft.open || event.shiftKey || state.busy) return null;
  if (tool !== "click") return painting(event);
  const from = stage.place(event);
  const moved = (to) => Math.hypot(to.clientX - event.clientX, to.clientY - event.clientY) > DRAG;
  return {
    move(to) {
      if (!draft.rubber && !moved(to)) return;
      draft.rubber = [...from, ...stage.place(to)];
      draft.mark();
    },
    end(to) {
      const drawn = draft.rubber;
      draft.rubber = null;
      if (to && drawn) take({ box: drawn });
      else if (to) click(event, 1);
      else draft.mark();
    },
  };
}

function painting(event) {
  draft.press(stage.place(event), radius / stage.zoom.k, tool === "brush");
  return {
    move(to) {
      draft.paint(stage.place(to), radius / stage.zoom.k);
      aim(to);
    },
    end: writePanel,
  };
}

/** Draws the brush where the pointer is. */
function aim(event) {
  draft.cursor = draft.open && tool !== "click" && event ? [...stage.place(event), radius / stage.zoom.k] : null;
  drawSoon();
}

function click(event, label) {
  const [x, y] = stage.place(event);
  const { width, height } = state.image;
  if (x < 0 || y < 0 || x >= width || y >= height) return;
  take({ point: [x, y, label] });
}

// A mask that is being made

/** `counts`: run lengths to paint on, instead of an answer of the model. */
function startDraft(target, counts = null) {
  if (state.image?.status !== "ok") return;
  tool = "click";
  draft.begin(target, counts);
  keepsAdding = target === null;
  stage.root.classList.add("drafting");
  if (stage.root.classList.contains("bare")) toggle("bare", "toggle-overlay");
  draw();
  writePanel();
}

function stopDraft() {
  answering?.abort();
  draft.end();
  stage.root.classList.remove("drafting");
}

/** Paints or clicks from now on: on the mask that is being made, else on the selected one, else on a new one. */
function takeUp(name) {
  if (state.busy || state.image?.status !== "ok") return;
  if (!draft.open && name === "click") return;
  if (!draft.open && state.selected === null && name === "eraser") return;
  if (!draft.open) {
    const { key, counts } = state.image.masks;
    if (state.selected === null) startDraft(null);
    else startDraft(key[state.selected], counts[state.selected]);
  }
  tool = name;
  aim(null);
  writePanel();
}

function resize(factor) {
  radius = Math.min(WIDEST, Math.max(FINEST, radius * factor));
  if (draft.cursor) draft.cursor[2] = radius / stage.zoom.k;
  drawSoon();
}

function take(step) {
  draft.steps.push(step);
  askModel();
}

async function askModel() {
  answering?.abort();
  const mine = (answering = new AbortController());
  const { prompts } = draft;
  problem("");
  draft.mark();
  draft.waiting = prompts !== null;
  if (!prompts) draft.answer(null);
  writePanel();
  if (!prompts) return;
  try {
    const { masks } = await posted("/answers", { ...which(), ...prompts }, mine.signal);
    if (mine.signal.aborted) return;
    draft.waiting = false;
    draft.answer(masks);
  } catch (error) {
    if (error.name === "AbortError" || mine.signal.aborted) return;
    draft.waiting = false;
    draft.answer(null);
    problem(error.message);
  }
  stage.root.dataset.answers = draft.answers?.counts.length ?? 0;
  writePanel();
}

function choose(index) {
  draft.choose(index);
  writePanel();
}

async function accept() {
  if (!draft.open || !draft.mask || !draft.steps.length || draft.waiting || state.busy) return;
  if (!(await edit({ action: draft.target === null ? "add" : "replace", ...draft.given }))) return;
  const again = keepsAdding;
  stopDraft();
  if (again) startDraft(null);
  draw();
  writePanel();
}

function cancel() {
  if (draft.open && draft.steps.length && draft.target === null) {
    startDraft(null);
    askModel();
  } else if (draft.open) {
    keepsAdding = false;
    stopDraft();
  } else {
    state.selected = null;
  }
  draw();
  writePanel();
}

// Edits

/** Stores an edit and shows what then stands. Whether it was stored. */
async function edit(given) {
  if (state.busy || !state.image) return false;
  state.busy = true;
  problem("");
  try {
    const image = await posted("/edit", { ...which(), who: state.who, seconds: watch.seconds(), ...given });
    state.image = image;
    state.selected = state.hovered = null;
    stage.remask(image);
    watch.start();
  } catch (error) {
    problem(`Not stored: ${error.message}`);
    state.busy = false;
    if (/not there any more/.test(error.message)) await show(which());
    problem(`Not stored: ${error.message}`);
    return false;
  }
  state.busy = false;
  draw();
  writePanel();
  return true;
}

function remove() {
  if (draft.open || state.selected === null) return;
  edit({ action: "delete", key: state.image.masks.key[state.selected] });
}

function replace() {
  if (draft.open || state.selected === null) return;
  const { key, bbox_x: x, bbox_y: y, bbox_w: w, bbox_h: h } = state.image.masks;
  const i = state.selected;
  startDraft(key[i]);
  take({ box: [x[i], y[i], x[i] + w[i], y[i] + h[i]] });
}

function undo() {
  if (draft.open && draft.steps.length) {
    if (draft.steps.pop().stroke) draft.draw();
    else askModel();
    writePanel();
  } else if (!draft.open || draft.target === null) {
    if (state.image?.undo) edit({ action: "undo" });
  }
}

async function done() {
  if (draft.steps.length) return problem("A mask is being made: Enter keeps it, Esc drops it.");
  if (state.image?.status !== "ok" || !(await edit({ action: "done" }))) return undefined;
  return go(1, true);
}

async function go(step, onlyLeft = false) {
  if (state.busy || !state.image) return;
  if (draft.steps.length) {
    problem("A mask is being made: Enter keeps it, Esc drops it.");
    return;
  }
  try {
    const { image } = await asked("/next", { ...which(), who: state.who, step, left: Number(onlyLeft) });
    if (image) await show(image);
    else if (onlyLeft) problem("Every image is done: data-engine apply-corrections makes a dataset of them.");
    else problem(step > 0 ? "This is the last image." : "This is the first image.");
  } catch (error) {
    problem(error.message);
  }
}

/** To the next mask, or the one before. */
function stepMask(by) {
  if (draft.open || !state.image?.n_masks) return;
  const all = state.image.n_masks;
  state.hovered = null;
  state.selected = state.selected === null ? (by > 0 ? 0 : all - 1) : (state.selected + by + all) % all;
  draw();
  writePanel();
}

// Beginning

function toggle(name, button) {
  const hidden = stage.root.classList.toggle(name);
  $(button).setAttribute("aria-pressed", !hidden);
}

function askWho() {
  return new Promise((resolve) => {
    $("who").value = state.who ?? "";
    $("ask").onclose = () => {
      if (state.who) return;
      $("person").textContent = "Say who corrects";
      $("person").hidden = false;
      stage.clear("Nobody corrects yet.");
    };
    $("ask-form").onsubmit = (event) => {
      event.preventDefault();
      const name = $("who").value.trim().replace(/\s+/g, " ");
      if (!name) return;
      $("ask").close();
      resolve(name);
    };
    $("ask").showModal();
  });
}

async function begin() {
  const found = await asked("", { who: state.who });
  state.images = found.images;
  $("dataset").textContent = `${found.root} · clicks are answered by ${found.model}`;
  $("dataset").title = $("dataset").textContent;
  $("person").textContent = state.who;
  $("person").hidden = false;
  $("panel").hidden = false;
  const wanted = new URLSearchParams(location.search).get("image");
  const first = wanted === null ? found.first : { id: wanted, position: null };
  if (first) await show(first);
  else stage.clear("This dataset has no image with masks to correct yet.");
}

function listenToAll() {
  const both = (key) => [key, key.toUpperCase()];
  const table = [
    { keys: both("a"), shown: "A", text: "add masks, one after the other; Esc ends it", act: () => draft.open || startDraft(null) },
    { keys: both("e"), shown: "E", text: "make the selected mask anew, beginning with its box", act: replace },
    { keys: [...both("x"), "Delete"], shown: "X", text: "delete the selected mask", act: remove },
    { keys: both("z"), shown: "Z", text: "undo: the last click, or your last edit of this image", act: undo },
    { keys: both("b"), shown: "B R", text: "brush and eraser: on the mask that is being made, or on the selected one", act: () => takeUp("brush") },
    { keys: both("c"), shown: "C", text: "clicks again", act: () => takeUp("click") },
    { keys: ["[", "]"], text: "smaller, larger brush", act: () => {} },
    { keys: ["Enter"], text: "keep the mask that is being made", act: accept },
    { keys: ["1", "2", "3"], text: "choose among the model's answers", act: () => {} },
    { keys: ["Escape"], shown: "Esc", text: "drop the clicks; then leave adding", act: cancel },
    { keys: ["ArrowRight", "l"], shown: "→ ←", text: "select the next mask, the one before", act: () => stepMask(1) },
    { keys: both("d"), shown: "D", text: "this image is done; to the next one that is not", act: done },
    { keys: ["j", "ArrowDown"], shown: "J K", text: "next image, image before, whether done or not", act: () => go(1) },
    { keys: [" "], shown: "space", text: "masks on and off", act: () => toggle("bare", "toggle-overlay") },
    { keys: both("f"), shown: "F", text: "fill on and off; outlines stay", act: () => toggle("lined", "toggle-fill") },
    { keys: ["+", "="], shown: "+ -", text: "zoom in and out", act: () => stage.zoomBy(1.4) },
    { keys: ["w", "W", "0"], shown: "W", text: "the whole image", act: () => stage.fit() },
    { keys: ["?"], text: "this help", act: () => $("help").showModal() },
  ];
  const silent = [
    ...["1", "2", "3"].map((key, i) => ({ keys: [key], act: () => choose(i) })),
    { keys: ["ArrowLeft", "h"], act: () => stepMask(-1) },
    { keys: ["k", "K", "ArrowUp"], act: () => go(-1) },
    { keys: ["J"], act: () => go(1) },
    { keys: both("r"), act: () => takeUp("eraser") },
    { keys: ["["], act: () => resize(1 / 1.25) },
    { keys: ["]"], act: () => resize(1.25) },
    { keys: ["-"], act: () => stage.zoomBy(1 / 1.4) },
  ];
  // A key that is held down edits once; only zooming and selecting go on.
  const held = (event) => event.repeat && !event.target.matches("input") && !/^(Arrow|[-+=hl[\]])/.test(event.key) && event.stopImmediatePropagation();
  document.addEventListener("keydown", held, true);
  listen(table, silent, $("help"), $("keys"));
  document.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.key !== "z" || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    undo();
  });
  stage.root.addEventListener("contextmenu", (event) => {
    event.preventDefault();
    if (draft.open && !state.busy && tool === "click") click(event, 0);
  });
  stage.root.addEventListener("pointermove", (event) => draft.open && tool !== "click" && aim(event));
  stage.root.addEventListener("pointerleave", () => draft.cursor && aim(null));
  // A focused button would take the space bar and Enter for itself.
  document.addEventListener("click", ({ target, detail }) => detail && target.closest(".panel .button")?.blur());
  const buttons = { add: () => (draft.open ? cancel() : startDraft(null)), replace, delete: remove, undo, accept, cancel, done };
  for (const [id, act] of Object.entries(buttons)) $(id).onclick = () => act();
  for (const button of document.querySelectorAll("[data-tool]")) button.onclick = () => takeUp(button.dataset.tool);
  $("before").onclick = () => go(-1);
  $("after").onclick = () => go(1);
  $("toggle-overlay").onclick = () => toggle("bare", "toggle-overlay");
  $("toggle-fill").onclick = () => toggle("lined", "toggle-fill");
  $("help-button").onclick = () => $("help").showModal();
  $("person").onclick = async () => {
    remember(await askWho());
    await run(begin);
  };
}

function remember(who) {
  state.who = who;
  localStorage.setItem("data-engine-audit-who", who);
}

async function run(task) {
  try {
    await task();
  } catch (error) {
    stage.clear(error.message);
  }
}

async function main() {
  listenToAll();
  remember(localStorage.getItem("data-engine-audit-who") ?? (await askWho()));
  await begin();
}

run(main);
