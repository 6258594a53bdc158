// What is shown above the composer, and what is read aloud.

import { say } from "../helpers/strings.js";
import { DeskError } from "../models/desk.js";

export class Notices {
  #notice;
  #announcer;

  constructor(notice, announcer) {
    this.#notice = notice;
    this.#announcer = announcer;
    const look = () => this.show(navigator.onLine ? "" : say("problem_offline"));
    for (const name of ["offline", "online"]) addEventListener(name, look);
    look();
  }

  show(text) {
    this.#notice.textContent = text;
    this.#notice.hidden = !text;
    if (text) this.announce(text);
  }

  // Read aloud once, whole: screen readers hear neither single tokens nor the waiting.
  announce(text) {
    this.#announcer.textContent = text;
  }

  // -> the step's result, or undefined after its problem was shown
  async orShow(step) {
    try {
      return await step;
    } catch (error) {
      if (!(error instanceof DeskError)) throw error;
      return this.show(say(`problem_${error.problem}`));
    }
  }
}
