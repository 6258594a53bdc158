// Keys of every list: j and k move, Enter opens (the row is a link), / searches, u goes back, ? helps. The row is in the URL.

const rows = () => [...document.querySelectorAll("[data-row]")];

function focus(row) {
  row.focus();
  row.scrollIntoView({ block: "nearest" });
  history.replaceState(null, "", `#${row.id}`);
}

function move(step) {
  const all = rows();
  if (!all.length) return false;
  const here = all.indexOf(document.activeElement);
  focus(all[here < 0 ? 0 : Math.min(Math.max(here + step, 0), all.length - 1)]);
  return true;
}

function search() {
  const box = document.querySelector("[data-search]");
  box?.focus();
  box?.select();
  return box !== null;
}

function press(key) {
  const target = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
  target?.click();
  return target !== null;
}

const isTyping = (node) => node.matches("input, textarea, select, [contenteditable]");
const MOVES = { j: () => move(1), k: () => move(-1), "/": search };

export function listenToKeys() {
  const dialog = document.getElementById("keys");
  document.querySelector('[data-key="?"]')?.addEventListener("click", () => dialog.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || dialog.open) return;
    if (isTyping(event.target)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (MOVES[event.key] ? MOVES[event.key]() : event.key.length === 1 && !event.repeat && press(event.key)) event.preventDefault();
  });
  document.getElementById(location.hash.slice(1))?.closest("[data-row]")?.focus();
}
