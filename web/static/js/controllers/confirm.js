// What the bot does only with the customer's yes: the values that it will be done with, and two buttons.

import { clone, part } from "../helpers/dom.js";

export class Confirm {
  #list;
  #onDecide;
  #card = null;

  // `onDecide(words, { decides: call_id, decision })` is called with what the pressed button says.
  constructor(list, onDecide) {
    [this.#list, this.#onDecide] = [list, onDecide];
  }

  // Shows what waits for a yes, in the place of anything that did before; nothing for nothing.
  show(asked) {
    this.close();
    if (!asked) return;
    this.#card = clone("confirm");
    for (const [name, value] of asked.arguments) {
      const row = clone("confirm-value");
      part(row, "name").textContent = name;
      part(row, "value").textContent = value;
      part(this.#card, "values").append(row);
    }
    for (const decision of ["yes", "no"]) {
      const button = part(this.#card, decision);
      button.addEventListener("click", () => this.#onDecide(button.textContent, { decides: asked.call_id, decision }));
    }
    this.#list.append(this.#card);
  }

  close() {
    this.#card?.remove();
    this.#card = null;
  }
}
