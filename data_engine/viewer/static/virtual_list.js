// A list of any length of which only the rows in sight exist. Rows are options of a listbox; the list itself has the focus.

const TALLEST = 8e6; // CSS pixels; browsers stop counting somewhere above 16 million
const BEYOND = 4; // rows made above and below what is in sight
const SETTLED_AFTER = 70; // ms without scrolling

export class VirtualList {
  /**
   * @param {HTMLElement} root a scrolling element
   * @param {{label: string, rowHeight: number, create: () => HTMLElement, fill: (row: HTMLElement, index: number) => void,
   *   settled?: (row: HTMLElement, index: number) => void, pick: (index: number) => void, hover?: (index: number | null) => void}} parts
   *   settled: called for rows that stay, once scrolling has stopped
   */
  constructor(root, parts) {
    this.root = root;
    this.parts = parts;
    this.count = 0;
    this.selected = null;
    this.rows = new Map();
    this.spare = [];
    this.spacer = document.createElement("div");
    this.spacer.className = "spacer";
    this.spacer.setAttribute("role", "presentation");
    root.append(this.spacer);
    root.tabIndex = 0;
    root.setAttribute("role", "listbox");
    root.setAttribute("aria-label", parts.label);
    root.addEventListener("scroll", () => this.#soon(), { passive: true });
    root.addEventListener("click", (event) => this.#rowOf(event, (index) => parts.pick(index)));
    if (parts.hover) {
      root.addEventListener("pointerover", (event) => this.#rowOf(event, parts.hover));
      root.addEventListener("pointerleave", () => parts.hover(null));
    }
    new ResizeObserver(() => this.#soon()).observe(root);
  }

  /** So many rows from now on; what is in sight is filled anew. */
  show(count) {
    this.count = count;
    this.spacer.style.height = `${Math.min(count * this.parts.rowHeight, TALLEST)}px`;
    this.refresh();
  }

  /** Fills the rows in sight anew. */
  refresh() {
    for (const [index, row] of this.rows) {
      if (index < this.count) this.#fill(row, index);
      else this.#drop(index, row);
    }
    this.#render();
  }

  /** Marks a row (null: none) and brings it into sight. */
  select(index, reveal = true) {
    this.selected = index;
    if (index !== null && reveal) this.#reveal(index);
    for (const [at, row] of this.rows) this.#mark(row, at);
  }

  get #scale() {
    const view = this.root.clientHeight;
    const whole = this.count * this.parts.rowHeight;
    const shown = Math.min(whole, TALLEST);
    return shown > view ? (whole - view) / (shown - view) : 1;
  }

  #reveal(index) {
    const { rowHeight } = this.parts;
    const view = this.root.clientHeight;
    const from = this.root.scrollTop * this.#scale;
    const top = index * rowHeight;
    if (top < from) this.root.scrollTop = top / this.#scale;
    else if (top + rowHeight > from + view) this.root.scrollTop = (top + rowHeight - view) / this.#scale;
    this.#render();
  }

  #soon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.#render();
    });
  }

  #render() {
    const { rowHeight } = this.parts;
    const scroll = this.root.scrollTop;
    const from = scroll * this.#scale;
    const first = Math.max(0, Math.floor(from / rowHeight) - BEYOND);
    const last = Math.min(this.count, Math.ceil((from + this.root.clientHeight) / rowHeight) + BEYOND);
    for (const [index, row] of this.rows) if (index < first || index >= last) this.#drop(index, row);
    for (let index = first; index < last; index++) {
      const row = this.rows.get(index) ?? this.#take(index);
      row.style.transform = `translateY(${index * rowHeight - from + scroll}px)`;
    }
    clearTimeout(this.timer);
    if (this.parts.settled) this.timer = setTimeout(() => this.rows.forEach((row, index) => this.parts.settled(row, index)), SETTLED_AFTER);
  }

  #take(index) {
    const row = this.spare.pop() ?? this.#make();
    row.dataset.index = index;
    row.id = `${this.root.id}-${index}`;
    row.hidden = false;
    this.#fill(row, index);
    this.rows.set(index, row);
    return row;
  }

  #fill(row, index) {
    row.setAttribute("aria-posinset", index + 1);
    row.setAttribute("aria-setsize", this.count);
    this.parts.fill(row, index);
    this.#mark(row, index);
  }

  #make() {
    const row = this.parts.create();
    row.classList.add("row");
    row.setAttribute("role", "option");
    row.style.height = `${this.parts.rowHeight}px`;
    this.spacer.append(row);
    return row;
  }

  #drop(index, row) {
    this.rows.delete(index);
    row.hidden = true;
    row.removeAttribute("id");
    this.spare.push(row);
  }

  #mark(row, index) {
    const chosen = index === this.selected;
    row.setAttribute("aria-selected", chosen);
    if (chosen) this.root.setAttribute("aria-activedescendant", row.id);
  }

  #rowOf(event, call) {
    const row = event.target.closest(".row");
    if (row) call(Number(row.dataset.index));
  }
}
