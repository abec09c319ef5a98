// The images that a search and a sort give, fetched page by page as they come into sight.

import * as api from "./api.js";

const PAGE = 100;
const PATIENCE = 400; // ms between questions while the server reads its index

export class ImageList extends EventTarget {
  constructor() {
    super();
    this.#reset();
  }

  #reset() {
    this.pages = new Map();
    this.total = 0;
    this.aborter?.abort();
    this.aborter = new AbortController();
  }

  /** Starts a new list. `around`: an image to begin near; resolves to its place in the list, or null. */
  async open(query, around = null) {
    this.#reset();
    this.query = query;
    const { signal } = this.aborter;
    const answer = await this.#ask({ ...query, offset: 0, limit: PAGE, around }, signal);
    if (!answer) return null;
    this.total = answer.total;
    this.#keep(answer);
    return answer.rank;
  }

  /** A row, or null while its page is on its way. */
  get(index) {
    const page = Math.floor(index / PAGE);
    const rows = this.pages.get(page);
    if (rows === undefined) this.#fetch(page);
    return rows?.[index - page * PAGE] ?? null;
  }

  /** A row, once it is there. Null beyond the ends. */
  async wait(index) {
    if (index < 0 || index >= this.total) return null;
    const page = Math.floor(index / PAGE);
    if (!this.pages.get(page)) await this.#fetch(page);
    return this.get(index);
  }

  async #fetch(page) {
    this.pages.set(page, null);
    const { signal } = this.aborter;
    const answer = await this.#ask({ ...this.query, offset: page * PAGE, limit: PAGE }, signal);
    if (answer) this.#keep(answer);
    else if (!signal.aborted) this.pages.delete(page); // asked for again when its rows are next in sight
  }

  #keep(answer) {
    const names = ["position", "id", "error", "width", "height", "masks", "predicted_iou", "stability", "area"];
    const rows = answer.id.map((_, i) => Object.fromEntries(names.map((name) => [name, answer[name][i]])));
    this.pages.set(Math.floor(answer.offset / PAGE), rows);
    this.dispatchEvent(new CustomEvent("rows"));
  }

  /** The answer, or null when another list was opened meanwhile or the server failed. */
  async #ask(values, signal) {
    try {
      for (;;) {
        const answer = await api.images(values, signal);
        if (!answer.reading) return answer;
        this.dispatchEvent(new CustomEvent("reading", { detail: answer.reading }));
        await new Promise((done) => setTimeout(done, PATIENCE));
        if (signal.aborted) return null;
      }
    } catch (error) {
      if (error.name !== "AbortError") this.dispatchEvent(new CustomEvent("failed", { detail: error.message }));
      return null;
    }
  }
}
