// One picture with its masks: zoom, pan, what is under the pointer, points and crops.

import { picture } from "./api.js";
import { Overlay } from "./overlay.js";

const PREVIEW = 2048; // pixels of the longer side; the whole picture is fetched when one zooms in
const DRAG = 4; // CSS pixels before a press becomes a drag
const CLOSEST = 40; // CSS pixels a pixel
const MARGIN = 20;
const BORDER = 1.6; // CSS pixels around every mask
const SETTLED_AFTER = 120; // ms without zooming
const SVG = "http://www.w3.org/2000/svg";

/** The size in which an image's picture is fetched first; 0: as it is. */
export const firstSide = (image) => (Math.max(image.width, image.height) <= PREVIEW ? 0 : PREVIEW);

export class Stage {
  /**
   * @param {HTMLElement} root gets the class "stage"
   * @param {{label: string, hover?: (index: number | null, event?: PointerEvent) => void,
   *   pick?: (index: number | null, event: PointerEvent) => void, view?: () => void,
   *   grab?: (event: PointerEvent) => {move: (event: PointerEvent) => void, end: (event: PointerEvent | null) => void} | null}} parts
   *   `grab`: asked at each press; what it returns gets the moves until it `end`s (null: given up), instead of moving the image
   */
  constructor(root, parts) {
    this.root = root;
    this.parts = parts;
    root.classList.add("stage");
    if (root.localName !== "main") root.setAttribute("role", "group");
    root.setAttribute("aria-label", parts.label);
    this.sheet = element("div", "sheet", root);
    this.img = element("img", "picture", this.sheet);
    this.img.alt = "";
    this.img.draggable = false;
    this.overlay = new Overlay(this.sheet);
    this.svg = this.sheet.appendChild(document.createElementNS(SVG, "svg"));
    this.svg.classList.add("marks");
    this.notice = element("p", "notice", root);
    this.notice.hidden = true;
    this.image = null;
    this.zoom = { x: 0, y: 0, k: 1 };
    this.fitted = true;
    this.#listen();
  }

  /**
   * Shows an answer of /api/image. `address(side)` is where its picture is.
   * Resolves when the picture is there, or known to be missing.
   */
  async load(image, address) {
    const samePlace = this.image && this.image.width === image.width && this.image.height === image.height;
    this.clear();
    this.image = image;
    this.address = address;
    if (image.status === "failed" || !image.width) {
      this.say(`This image failed (${image.error_type ?? "unknown"}): ${image.error_message ?? ""}`, "failed");
      return;
    }
    this.sheet.hidden = false;
    this.sheet.style.width = `${image.width}px`;
    this.sheet.style.height = `${image.height}px`;
    this.svg.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
    this.overlay.load(image);
    if (this.overlay.damaged.length) this.say(this.overlay.damaged.join("\n"), "failed");
    if (samePlace && !this.fitted) this.#place();
    else this.fit();
    await this.#fetch(firstSide(image));
  }

  /** Other masks of the image that is shown. */
  remask(image) {
    this.image = image;
    this.overlay.load(image);
  }

  /** Where a pointer is, in pixels of the image; outside of it, too. */
  place(event) {
    const box = this.root.getBoundingClientRect();
    return [(event.clientX - box.left - this.zoom.x) / this.zoom.k, (event.clientY - box.top - this.zoom.y) / this.zoom.k];
  }

  /** Nothing on it but a text, if one is given. */
  clear(text = "") {
    this.aborter?.abort();
    this.image = null;
    this.overlay.clear();
    this.svg.replaceChildren();
    this.sheet.hidden = true;
    this.sheet.classList.remove("bare");
    this.img.removeAttribute("src");
    this.side = null;
    this.say(text);
  }

  say(text, kind = "") {
    this.notice.textContent = text;
    this.notice.className = `notice ${kind}`;
    this.notice.hidden = !text;
  }

  /** Draws some masks. */
  draw(indices, colourOf) {
    this.overlay.show(indices, colourOf, BORDER / this.zoom.k);
  }

  /** Outlines a mask, or none (null). */
  highlight(index) {
    this.overlay.highlight(index, 2 / this.zoom.k);
  }

  /** Draws points and crops of some masks. */
  mark(indices, { points, crops }, colourOf) {
    this.svg.replaceChildren();
    if (!this.image?.masks) return;
    const { masks } = this.image;
    if (crops) {
      const seen = new Set(indices.map((i) => [masks.crop_x[i], masks.crop_y[i], masks.crop_w[i], masks.crop_h[i]].join()));
      for (const text of seen) {
        const [x, y, width, height] = text.split(",");
        this.#shape("rect", { x, y, width, height });
      }
    }
    if (points) {
      for (const i of indices) {
        const dot = this.#shape("circle", { cx: masks.point_x[i], cy: masks.point_y[i] });
        dot.style.fill = colourOf(i);
      }
    }
  }

  /** The whole image in sight. */
  fit() {
    if (!this.image?.width) return;
    const { clientWidth, clientHeight } = this.root;
    const { width, height } = this.image;
    const k = Math.max(1e-3, Math.min((clientWidth - 2 * MARGIN) / width, (clientHeight - 2 * MARGIN) / height, CLOSEST));
    this.zoom = { x: (clientWidth - width * k) / 2, y: (clientHeight - height * k) / 2, k };
    this.fitted = true;
    this.#place();
    this.parts.view?.();
  }

  /** Zooms by a factor around a point of the stage (its middle). */
  zoomBy(factor, x = this.root.clientWidth / 2, y = this.root.clientHeight / 2) {
    const { zoom } = this;
    const k = Math.max(0.02, Math.min(CLOSEST, zoom.k * factor));
    this.zoom = { x: x - ((x - zoom.x) * k) / zoom.k, y: y - ((y - zoom.y) * k) / zoom.k, k };
    this.fitted = false;
    this.#place();
    this.parts.view?.();
  }

  /** Takes the place of another stage's image, where both are of one size. */
  follow(other) {
    if (other.image?.width !== this.image?.width || other.image?.height !== this.image?.height) return;
    this.zoom = { ...other.zoom };
    this.fitted = other.fitted;
    this.#place();
  }

  async #fetch(side) {
    this.side = side;
    this.aborter?.abort();
    const { signal } = (this.aborter = new AbortController());
    const { image } = this;
    try {
      const blob = await picture(this.address(side), signal);
      const address = URL.createObjectURL(blob);
      const next = new Image();
      next.src = address;
      await next.decode().catch(() => {});
      if (this.image === image) this.img.src = address;
      setTimeout(() => URL.revokeObjectURL(address), 60_000);
    } catch (error) {
      if (error.name === "AbortError" || this.image !== image) return;
      if (this.img.getAttribute("src")) return; // the smaller one stays
      this.sheet.classList.add("bare");
      this.say(`The original is not shown: ${error.message}`);
    }
  }

  #place() {
    const { x, y, k } = this.zoom;
    this.sheet.style.transform = `translate(${x}px, ${y}px) scale(${k})`;
    this.sheet.style.setProperty("--k", k);
    clearTimeout(this.timer);
    if (k !== this.bordered) this.timer = setTimeout(() => this.overlay.border(BORDER / (this.bordered = k)), SETTLED_AFTER);
    this.sheet.classList.toggle("close", k * devicePixelRatio > 3);
    const needed = k * devicePixelRatio * Math.max(this.image?.width ?? 0, this.image?.height ?? 0);
    if (this.side === PREVIEW && needed > 1.2 * PREVIEW && this.img.getAttribute("src")) this.#fetch(0);
  }

  #shape(name, attributes) {
    const shape = this.svg.appendChild(document.createElementNS(SVG, name));
    for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
    return shape;
  }

  #listen() {
    const { root } = this;
    let press = null;
    const at = (event) => {
      const box = root.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const under = (event) => this.overlay.at(...this.place(event));
    root.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      const [x, y] = at(event);
      press = { x, y, zoom: this.zoom, moved: false, taken: this.image ? this.parts.grab?.(event) : null };
      root.setPointerCapture(event.pointerId);
    });
    root.addEventListener("pointermove", (event) => {
      if (!press) return this.parts.hover?.(under(event), event);
      if (press.taken) return press.taken.move(event);
      const [x, y] = at(event);
      press.moved ||= Math.hypot(x - press.x, y - press.y) > DRAG;
      if (!press.moved) return undefined;
      this.zoom = { ...press.zoom, x: press.zoom.x + x - press.x, y: press.zoom.y + y - press.y };
      this.fitted = false;
      this.#place();
      return this.parts.view?.();
    });
    root.addEventListener("pointerup", (event) => {
      if (press?.taken) press.taken.end(event);
      else if (press && !press.moved) this.parts.pick?.(under(event), event);
      press = null;
    });
    root.addEventListener("pointercancel", () => {
      press?.taken?.end(null);
      press = null;
    });
    root.addEventListener("pointerleave", () => this.parts.hover?.(null));
    if (!this.parts.grab) root.addEventListener("dblclick", () => this.fit()); // where two clicks mean nothing else
    root.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...at(event));
      },
      { passive: false },
    );
    new ResizeObserver(() => this.fitted && this.fit()).observe(root);
  }
}

function element(tag, name, parent) {
  const made = document.createElement(tag);
  made.className = name;
  parent.append(made);
  return made;
}
