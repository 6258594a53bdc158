// Storage that a browser may refuse (private windows, blocked cookies): then memory serves until the page closes.

export class SafeStorage {
  #memory = new Map();
  #open;

  // `open` returns a Storage, or throws where the browser forbids it.
  constructor(open) {
    this.#open = open;
  }

  get(key) {
    try {
      return this.#open().getItem(key) ?? this.#memory.get(key) ?? null;
    } catch {
      return this.#memory.get(key) ?? null;
    }
  }

  set(key, value) {
    this.#memory.set(key, value);
    try {
      this.#open().setItem(key, value);
    } catch {
      // Full or forbidden: the memory copy above is the one that counts.
    }
  }

  remove(key) {
    this.#memory.delete(key);
    try {
      this.#open().removeItem(key);
    } catch {
      // As above.
    }
  }
}
