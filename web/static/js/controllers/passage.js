// The passage behind a citation: beside the conversation where there is room, a sheet over it where there is not.

import { part } from "../helpers/dom.js";
import { say } from "../helpers/strings.js";

const WIDE = matchMedia("(min-width: 75rem)");

export class PassagePanel {
  #dialog;
  #opener = null;
  #fallback;

  // `fallback` takes the focus when the number that opened the passage is gone.
  constructor(dialog, fallback) {
    this.#dialog = dialog;
    this.#fallback = fallback;
    part(dialog, "close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => this.#return());
    WIDE.addEventListener("change", () => this.close());
  }

  get isOpen() {
    return this.#dialog.open;
  }

  toggle(citation, opener) {
    if (this.isOpen && opener === this.#opener) return this.#dialog.close();
    this.#mark(false);
    this.#opener = opener;
    part(this.#dialog, "number").textContent = say("source", { number: citation.number });
    part(this.#dialog, "title").textContent = citation.title;
    part(this.#dialog, "text").textContent = citation.text;
    this.#mark(true);
    if (this.isOpen) return part(this.#dialog, "close").focus();
    return WIDE.matches ? this.#dialog.show() : this.#dialog.showModal();
  }

  close() {
    if (this.isOpen) this.#dialog.close();
  }

  #mark(isOpen) {
    this.#opener?.setAttribute("aria-expanded", String(isOpen));
  }

  #return() {
    this.#mark(false);
    const opener = this.#opener;
    this.#opener = null;
    (opener?.isConnected ? opener : this.#fallback).focus();
  }
}
