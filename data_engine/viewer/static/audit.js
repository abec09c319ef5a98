// One mask of a sample at a time: a person judges it, the verdict is stored, the next one comes.

import { pictureAddress } from "./api.js";
import { listen } from "./keys.js";
import { Stage } from "./stage.js";
import { asked, store } from "./audit_requests.js";
import { showReport } from "./audit_result.js";
import { Watch } from "./audit_watch.js";

const COLOR = [255, 40, 160]; // seldom a color of a photograph
const LINE = 2; // CSS pixels
const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

const state = { name: null, who: null, masks: 0, answers: new Map(), position: 0, mask: null, busy: true, whole: false, drawn: null };
const ahead = new Map(); // position -> promise of its mask, with its picture on the way
const watch = new Watch(document);
const stage = new Stage($("stage"), { label: "The mask on its image", view: drawSoon });

// What is shown

function maskAt(position) {
  if (!ahead.has(position)) {
    const mask = asked("audit/mask", { name: state.name, position });
    const fetchPicture = ({ image_id, image_position, width, height }) => {
      new Image().src = pictureAddress(0, image_id, Math.max(width, height) <= 2048 ? 0 : 2048, image_position);
    };
    mask.then(fetchPicture, () => ahead.delete(position));
    ahead.set(position, mask);
    if (ahead.size > 8) ahead.delete(ahead.keys().next().value);
  }
  return ahead.get(position);
}

async function show(position) {
  state.busy = true;
  state.position = position;
  state.whole = false;
  if (stage.root.classList.contains("bare")) toggle("bare", "toggle-overlay");
  $("panel").classList.add("busy");
  watch.stop();
  problem("");
  writePanel();
  try {
    const mask = await maskAt(position);
    const address = (side) => pictureAddress(0, mask.image_id, side, mask.image_position);
    const loaded = stage.load({ ...mask, status: "ok" }, address);
    state.mask = mask;
    state.drawn = null;
    look();
    await loaded;
    stage.root.dataset.position = position; // of the mask that is completely there
  } catch (error) {
    state.mask = null; // nothing is judged that nobody has seen
    stage.clear(error.message);
  }
  state.busy = false;
  $("panel").classList.remove("busy");
  if (!state.mask) return;
  watch.start();
  const next = following(position);
  if (next !== null) maskAt(next).catch(() => {});
}

/** The window around the mask, or all of the image. */
function look() {
  if (!state.mask) return;
  $("toggle-whole").setAttribute("aria-pressed", state.whole);
  if (state.whole) {
    stage.fit();
  } else {
    const [x0, y0, x1, y1] = state.mask.window;
    const { clientWidth, clientHeight } = stage.root;
    const k = clamp(Math.min(clientWidth / (x1 - x0), clientHeight / (y1 - y0)), 0.02, 40);
    const zoom = { x: clientWidth / 2 - (k * (x0 + x1)) / 2, y: clientHeight / 2 - (k * (y0 + y1)) / 2, k };
    stage.follow({ image: stage.image, zoom, fitted: false });
  }
  drawSoon();
}

let frame = null;

/** The outline keeps its thickness on the screen, however near one looks. */
function drawSoon() {
  frame ??= requestAnimationFrame(() => {
    frame = null;
    const thickness = Math.max(1, Math.round(LINE / stage.zoom.k)); // in pixels of the image
    if (!stage.image || state.drawn === thickness) return;
    state.drawn = thickness;
    stage.overlay.show([0], () => COLOR, thickness);
  });
}

function writePanel() {
  const done = state.answers.size;
  $("progress").max = state.masks;
  $("progress").value = done;
  $("progress-text").textContent = `${done.toLocaleString()} of ${state.masks.toLocaleString()} judged`;
  $("place").textContent = `mask ${(state.position + 1).toLocaleString()}`;
  const before = state.answers.get(state.position);
  for (const button of document.querySelectorAll("[data-verdict]")) {
    const { verdict, reason } = button.dataset;
    const pressed = before?.verdict === verdict && (reason === undefined || before.reason === reason);
    button.setAttribute("aria-pressed", pressed);
  }
  $("note").value = before?.note ?? "";
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

// Going through the sample

/** The next position without an answer, from the beginning again after the end; null where all are answered. */
function following(position) {
  for (let i = 1; i <= state.masks; i++) {
    const next = (position + i) % state.masks;
    if (!state.answers.has(next)) return next;
  }
  return null;
}

async function judge(verdict, reason = null) {
  if (state.busy || !state.mask || $("panel").hidden || $("ask").open) return;
  state.busy = true;
  const { name, who, position } = state;
  const note = $("note").value;
  const seconds = watch.seconds();
  try {
    await store({ name, who, position, verdict, reason, note, seconds });
  } catch (error) {
    problem(`Not stored: ${error.message}`);
    state.busy = false;
    return;
  }
  state.answers.set(position, { verdict, reason, note });
  $("note").blur();
  const next = following(position);
  await (next === null ? finish() : show(next));
}

function back() {
  if (!$("finish").hidden) {
    $("finish").hidden = true;
    $("panel").hidden = false;
    show(state.position);
  } else if (!state.busy && state.position > 0) {
    show(state.position - 1);
  }
}

async function finish() {
  watch.stop();
  state.busy = false;
  try {
    const report = await asked("audit/report", { name: state.name, who: state.who });
    $("panel").hidden = true;
    showReport($("finish"), report, state.reasons, back);
    $("finish").hidden = false;
  } catch (error) {
    $("panel").hidden = false;
    writePanel();
    problem(error.message);
  }
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
      $("person").textContent = "Say who judges";
      $("person").hidden = false;
      stage.clear("Nobody judges yet.");
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
  $("finish").hidden = true;
  const found = await asked("audit", { name: state.name, who: state.who });
  state.masks = found.masks;
  state.reasons = found.reasons;
  state.answers = new Map(Object.entries(found.answers).map(([position, answer]) => [Number(position), answer]));
  $("drawn").textContent = found.drawn;
  $("drawn").title = found.drawn;
  $("person").textContent = state.who;
  $("person").hidden = false;
  const reasons = Object.entries(found.reasons).map(([reason, words], i) => {
    const button = document.createElement("button");
    const cap = document.createElement("kbd");
    button.className = "button reject";
    button.dataset.verdict = "reject";
    button.dataset.reason = reason;
    cap.textContent = i + 1;
    button.append(words, cap);
    return button;
  });
  $("reasons").replaceChildren(...reasons);
  $("panel").hidden = false;
  const next = following(-1);
  state.position = next ?? Math.max(0, state.masks - 1);
  await (next === null ? finish() : show(next));
}

function withReason(number) {
  const button = $("reasons").children[number];
  if (button) judge("reject", button.dataset.reason);
}

function listenToAll() {
  const both = (key) => [key, key.toUpperCase()];
  const table = [
    { keys: both("a"), shown: "A", text: "accept", act: () => judge("accept") },
    { keys: both("r"), shown: "R", text: "reject", act: () => judge("reject") },
    { keys: ["1", "2", "3", "4", "5"], text: "reject, for the reason of that number", act: () => {} },
    { keys: both("u"), shown: "U", text: "unsure", act: () => judge("unsure") },
    { keys: both("z"), shown: "Z", text: "back to the mask before, to judge it again", act: back },
    { keys: [" "], shown: "space", text: "mask on and off", act: () => toggle("bare", "toggle-overlay") },
    { keys: both("f"), shown: "F", text: "fill on and off; the outline stays", act: () => toggle("lined", "toggle-fill") },
    { keys: both("w"), shown: "W", text: "whole image, or the mask and what is around it", act: whole },
    { keys: ["+", "="], shown: "+ -", text: "zoom in and out; the wheel zooms, dragging moves", act: () => stage.zoomBy(1.4) },
    { keys: both("n"), shown: "N", text: "write a note; Enter goes back", act: () => $("note").focus() },
    { keys: ["?"], text: "this help", act: () => $("help").showModal() },
  ];
  const digits = ["1", "2", "3", "4", "5"].map((key, i) => ({ keys: [key], act: () => withReason(i) }));
  const minus = { keys: ["-"], act: () => stage.zoomBy(1 / 1.4) };
  // A key that is held down judges one mask, not all that follow.
  const held = (event) => event.repeat && !event.target.matches("input") && event.stopImmediatePropagation();
  document.addEventListener("keydown", held, true);
  listen(table, [...digits, minus], $("help"), $("keys"));
  $("panel").addEventListener("click", ({ target }) => {
    const button = target.closest("[data-verdict]");
    if (button) judge(button.dataset.verdict, button.dataset.reason);
  });
  // A focused button would take the space bar for itself.
  document.addEventListener("click", ({ target, detail }) => detail && target.closest(".panel .button")?.blur());
  $("note").addEventListener("keydown", (event) => event.key === "Enter" && $("note").blur());
  $("toggle-overlay").onclick = () => toggle("bare", "toggle-overlay");
  $("toggle-fill").onclick = () => toggle("lined", "toggle-fill");
  $("toggle-whole").onclick = whole;
  $("back").onclick = back;
  $("help-button").onclick = () => $("help").showModal();
  $("person").onclick = async () => {
    remember(await askWho());
    await run(begin);
  };
  $("names").onchange = () => location.assign(`/audit?${new URLSearchParams({ name: $("names").value })}`);
  new ResizeObserver(() => stage.image && look()).observe(stage.root);
}

function whole() {
  state.whole = !state.whole;
  look();
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
  const { root, names } = await asked("audits", {});
  const wanted = new URLSearchParams(location.search).get("name");
  if (!names.length && !wanted) {
    stage.clear(`This dataset has no audit yet. Draw a sample, then reload:\n\ndata-engine audit-sample ${root} --masks 400 --name first`);
    return;
  }
  state.name = wanted ?? names[0];
  $("name").textContent = state.name;
  document.title = `Audit ${state.name} · data-engine`;
  $("names").hidden = names.length < 2;
  $("names").append(...names.map((name) => new Option(name, name, false, name === state.name)));
  const who = localStorage.getItem("data-engine-audit-who");
  remember(who ?? (await askWho()));
  await begin();
}

run(main);
