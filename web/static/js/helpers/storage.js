// Storage that a browser may refuse (private windows, blocked cookies): then memory serves until the page closes.

export class SafeStorage {
  #memory = new Map();
  #open;
  #suffix;

  // `open` returns a Storage, or throws where the browser forbids it; what sites keep there is kept apart.
  constructor(open, siteId = "") {
    this.#open = open;
    this.#suffix = siteId && `.${siteId}`;
  }

  get(name) {
    const key = name + this.#suffix;
    try {
      return this.#open().getItem(key) ?? this.#memory.get(key) ?? null;
    } catch {
      return this.#memory.get(key) ?? null;
    }
  }

  set(name, value) {
    const key = name + this.#suffix;
    this.#memory.set(key, value);
    try {
      this.#open().setItem(key, value);
    } catch {
      // Full or forbidden: the memory copy above is the one that counts.
    }
  }
}
