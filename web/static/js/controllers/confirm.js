// What the bot asks back: a yes to what it wants to do, with the values that it will be done with; or which of several things is meant.

import { clone, part } from "../helpers/dom.js";

export class Confirm {
  #list;
  #onDecide;
  #card = null;

  // `onDecide(words, { decides: call_id, decision })` is called with what the pressed button says; words alone are a message.
  constructor(list, onDecide) {
    [this.#list, this.#onDecide] = [list, onDecide];
  }

  // Shows what waits for a yes, or a message's quick replies, in the place of anything that did before; nothing for nothing.
  show(asked) {
    this.close();
    if (asked?.call_id) this.#ask(asked);
    else if (asked?.quick_replies?.length) this.#offer(asked.quick_replies);
  }

  close() {
    this.#card?.remove();
    this.#card = null;
  }

  #ask(asked) {
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

  #offer(replies) {
    this.#card = clone("replies");
    for (const text of replies) {
      const node = clone("suggestion");
      part(node, "button").textContent = text;
      part(node, "button").addEventListener("click", () => this.#onDecide(text));
      this.#card.append(node);
    }
    this.#list.append(this.#card);
  }
}
