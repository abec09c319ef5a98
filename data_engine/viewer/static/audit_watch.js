// How long a person has looked: stands still while the tab is hidden.

export class Watch {
  /** @param {Document} page tells whether it is seen @param {() => number} clock milliseconds */
  constructor(page, clock = () => performance.now()) {
    this.page = page;
    this.clock = clock;
    this.total = 0;
    this.since = null;
    this.running = false;
    page.addEventListener("visibilitychange", () => this.#count());
  }

  /** From zero. */
  start() {
    this.total = 0;
    this.since = null;
    this.running = true;
    this.#count();
  }

  stop() {
    this.running = false;
    this.#count();
  }

  /** Seconds since the start, without those out of sight; less than a day. */
  seconds() {
    this.#count();
    return Math.min(Math.round(this.total) / 1000, 86_399);
  }

  #count() {
    const now = this.clock();
    if (this.since !== null) this.total += now - this.since;
    this.since = this.running && !this.page.hidden ? now : null;
  }
}
