// What is shown, kept in the address: every view has a link, and back leads back.

const NONE = [null, null];
export const RANGES = ["predicted_iou", "stability_score", "area"]; // area: as a share of the image
const NAMES = { predicted_iou: "iou", stability_score: "stability", area: "area" };
const DEFAULTS = {
  image: null, // id
  mask: null, // its number in the first run; "b3": in the second
  colour: "id", // id, score or stability
  search: "",
  sort: "dataset",
  descending: false,
  status: "all",
  masks: true,
  points: false,
  crops: false,
  predicted_iou: NONE, // [at least, at most], null: any
  stability_score: NONE,
  area: NONE,
};
const WRITE_AFTER = 120; // ms: browsers refuse too many changes of the address

export class State extends EventTarget {
  constructor() {
    super();
    Object.assign(this, fromAddress());
    window.addEventListener("popstate", () => this.#change(fromAddress()));
  }

  /** Takes in some values; `change` events tell which. `push`: back leads to what was there before. */
  update(values, push = false) {
    if (push) this.#write(true);
    this.#change(values);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#write(), WRITE_AFTER);
  }

  get filtered() {
    return RANGES.some((name) => this[name].some((bound) => bound !== null));
  }

  #change(values) {
    const changed = Object.keys(values).filter((name) => String(this[name]) !== String(values[name]));
    if (!changed.length) return;
    Object.assign(this, values);
    this.dispatchEvent(new CustomEvent("change", { detail: new Set(changed) }));
  }

  /** `push`: leaves the present address in the history. */
  #write(push = false) {
    clearTimeout(this.timer);
    try {
      history.replaceState(null, "", address(this));
      if (push) history.pushState(null, "", address(this));
    } catch {
      // a browser that counts changes of the address: the next one, later, takes all of it
    }
  }
}

function address(state) {
  const query = new URLSearchParams();
  for (const [name, usual] of Object.entries(DEFAULTS)) {
    const value = state[name];
    if (String(value) === String(usual)) continue;
    if (RANGES.includes(name)) query.set(NAMES[name], value.map((bound) => bound ?? "").join(".."));
    else query.set(name, typeof value === "boolean" ? Number(value) : value);
  }
  const text = query.toString();
  return text ? `?${text}` : location.pathname;
}

function fromAddress() {
  const query = new URLSearchParams(location.search);
  const values = { ...DEFAULTS };
  for (const [name, usual] of Object.entries(DEFAULTS)) {
    const text = query.get(NAMES[name] ?? name);
    if (text === null) continue;
    if (RANGES.includes(name)) values[name] = bounds(text);
    else values[name] = typeof usual === "boolean" ? text === "1" : text;
  }
  return values;
}

function bounds(text) {
  const [low, high] = text.split("..").map((part) => (part && Number.isFinite(Number(part)) ? Number(part) : null));
  return [low ?? null, high ?? null];
}
