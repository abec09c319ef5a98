// The keyboard: one table, which both acts and explains itself in the help panel.

/**
 * @param {{keys: string[], shown?: string, text: string, act: () => void}[]} table
 * @param {{keys: string[], act: () => void}[]} silent the other halves of pairs, which the table explains together
 * @param {HTMLDialogElement} help @param {HTMLElement} list gets the table
 */
export function listen(table, silent, help, list) {
  for (const { keys, shown, text } of table) {
    const term = document.createElement("dt");
    for (const key of shown ? shown.split(" ") : keys) {
      const cap = document.createElement("kbd");
      cap.textContent = key;
      term.append(cap, " ");
    }
    const meaning = document.createElement("dd");
    meaning.textContent = text;
    list.append(term, meaning);
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const { target } = event;
    if (event.key === " " && target.matches("button")) return; // it presses the button that has the focus
    if (target.matches("input:not([type=range]), textarea")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    const steers = event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End";
    if (steers && target.matches("input, select, [role=radio]")) return;
    if (target.matches("select") && event.key.length === 1) return;
    const entry = [...silent, ...table].find(({ keys }) => keys.includes(event.key));
    if (!entry) return;
    event.preventDefault();
    entry.act();
  });
}
