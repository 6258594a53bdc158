// A question taken back into the box: sent again, it takes the place of the old one and of all that followed it.

import { part } from "../helpers/dom.js";

export class Editing {
  #note;
  #list;
  #composer;
  #question = null;

  constructor(note, list, composer) {
    this.#note = note;
    this.#list = list;
    this.#composer = composer;
    part(note, "cancel").addEventListener("click", () => this.stop());
    composer.onUp = () => part(this.#list.querySelector(".question:nth-last-child(-n + 2)") ?? note, "edit")?.click();
  }

  get isOn() {
    return this.#question !== null;
  }

  begin(question) {
    this.#show(question);
    this.#composer.edit(part(question, "text").textContent);
  }

  stop() {
    this.#show(null);
    this.#composer.edit("");
  }

  // -> the id of the message that the next one replaces, or null; it is off the page now
  finish() {
    const question = this.#question;
    this.#show(null);
    if (!question) return null;
    while (question.isConnected) this.#list.lastChild.remove();
    return question.dataset.messageId || null;
  }

  #show(question) {
    this.#question = question;
    this.#note.hidden = !question;
  }
}
