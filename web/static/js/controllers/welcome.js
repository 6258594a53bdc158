// Before the first question: who answers here, and a few questions to begin with.

import { clone, part } from "../helpers/dom.js";
import { site } from "../helpers/site.js";
import { language } from "../helpers/strings.js";

export class Welcome {
  #node;
  #onChoice;

  constructor(node, onChoice) {
    this.#node = node;
    this.#onChoice = onChoice;
  }

  async greet(desk) {
    const shop = await desk.shop(language);
    const name = site.title || shop.name;
    document.getElementById("shop-name").textContent = name;
    document.title = `${name} · ${document.title}`;
    part(this.#node, "greeting").textContent = shop.greeting;
    part(this.#node, "suggestions").replaceChildren(...shop.suggestions.slice(0, 4).map((text) => this.#suggestion(text)));
  }

  set isOver(isOver) {
    part(this.#node, "suggestions").hidden = isOver;
  }

  #suggestion(text) {
    const node = clone("suggestion");
    part(node, "button").textContent = text;
    part(node, "button").addEventListener("click", () => this.#onChoice(text));
    return node;
  }
}
