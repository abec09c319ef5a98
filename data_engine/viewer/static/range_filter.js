// A slider with two ends over a histogram of the masks at hand. An end at its limit means "any".

const BINS = 40;

/** Where a value lies between 0 and 1, and back: evenly, or by its logarithm. */
export const linear = (low, high) => ({
  share: (value) => (value - low) / (high - low),
  value: (share) => low + share * (high - low),
});
export const logarithmic = (low, high) => ({
  share: (value) => Math.log(Math.max(value, low) / low) / Math.log(high / low),
  value: (share) => low * (high / low) ** share,
});

export class RangeFilter {
  /**
   * @param {HTMLElement} parent
   * @param {{name: string, label: string, scale: ReturnType<linear>, steps: number, text: (value: number) => string,
   *   change: (bounds: (number | null)[]) => void}} parts
   */
  constructor(parent, parts) {
    this.parts = parts;
    this.values = [];
    const root = document.createElement("fieldset");
    root.className = "range";
    root.innerHTML = '<legend></legend><output></output><canvas class="histogram" aria-hidden="true"></canvas><div class="track"></div>';
    root.querySelector("legend").textContent = parts.label;
    this.output = root.querySelector("output");
    this.canvas = root.querySelector("canvas");
    this.inputs = ["at least", "at most"].map((bound, i) => {
      const input = document.createElement("input");
      input.type = "range";
      input.min = 0;
      input.max = parts.steps;
      input.value = i * parts.steps;
      input.name = `${parts.name}-${i ? "most" : "least"}`;
      input.setAttribute("aria-label", `${parts.label}, ${bound}`);
      input.addEventListener("input", () => this.#moved(i));
      root.querySelector(".track").append(input);
      return input;
    });
    parent.append(root);
    this.set([null, null]);
  }

  /** Puts the ends somewhere, without telling. */
  set(bounds) {
    const { scale, steps } = this.parts;
    bounds.forEach((bound, i) => {
      this.inputs[i].value = bound === null ? i * steps : Math.round(scale.share(bound) * steps);
    });
    this.bounds = bounds;
    this.#draw();
  }

  /** The values that the histogram counts. */
  count(values) {
    this.values = values;
    this.#draw();
  }

  #moved(moved) {
    const [low, high] = this.inputs.map((input) => Number(input.value));
    if (low > high) this.inputs[moved].value = moved ? low : high;
    const { scale, steps } = this.parts;
    this.bounds = this.inputs.map((input, i) => {
      const at = Number(input.value);
      return at === i * steps ? null : Number(scale.value(at / steps).toPrecision(4));
    });
    this.#draw();
    this.parts.change(this.bounds);
  }

  #draw() {
    const { text, scale } = this.parts;
    const [low, high] = this.bounds;
    const worded = [
      low === null ? "" : `≥ ${text(low)}`,
      high === null ? "" : `≤ ${text(high)}`,
    ].filter(Boolean);
    this.output.textContent = worded.join("  ") || "any";
    this.inputs.forEach((input, i) => input.setAttribute("aria-valuetext", this.bounds[i] === null ? "any" : text(this.bounds[i])));
    const counts = new Array(BINS).fill(0);
    for (const value of this.values) counts[Math.max(0, Math.min(BINS - 1, Math.floor(scale.share(value) * BINS)))]++;
    const width = (this.canvas.width = 560);
    const height = (this.canvas.height = 52);
    const context = this.canvas.getContext("2d");
    const most = Math.max(1, ...counts);
    const from = low === null ? -1 : scale.share(low);
    const to = high === null ? 2 : scale.share(high);
    counts.forEach((count, bin) => {
      const inside = (bin + 1) / BINS > from && bin / BINS < to;
      context.fillStyle = inside ? "#5d9a95" : "#2b313c";
      const tall = count ? Math.max(4, Math.sqrt(count / most) * height) : 2;
      context.fillRect((bin * width) / BINS + 1, height - tall, width / BINS - 2, tall);
    });
  }
}
