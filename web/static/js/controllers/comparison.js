// A second answer beside the first: offered in one quiet line, shown side by side when the customer cares to look, gone when they go on.

import { clone, part, uuid } from "../helpers/dom.js";
import { MarkdownView } from "../helpers/markdown.js";
import { say } from "../helpers/strings.js";
import { DeskError } from "../models/desk.js";

export class Comparison {
  #desk;
  #announce;
  #replace;
  #line = new AbortController();
  #node = null;

  // `announce(text)` reads aloud; `replace(answer)` puts an empty one in the place of an answer, and returns it.
  constructor(desk, announce, replace) {
    [this.#desk, this.#announce, this.#replace] = [desk, announce, replace];
  }

  // Nothing waits for it and nothing is said when none comes.
  async begin(conversationId, message, answer) {
    this.close();
    if (!message?.has_second) return;
    const { signal } = (this.#line = new AbortController());
    const offer = await this.#desk.second(conversationId, message.message_id, signal).catch((error) => this.#none(error));
    if (offer && !signal.aborted && answer.node.isConnected) this.#invite(conversationId, { first: message, second: offer.message }, offer.side, answer);
  }

  close() {
    this.#line.abort();
    this.#node?.parentElement.classList.remove("comparing");
    this.#node?.remove();
    this.#node = null;
  }

  #none(error) {
    if (!(error instanceof DeskError)) throw error;
    return null;
  }

  #invite(conversationId, messages, side, answer) {
    const node = (this.#node = clone("comparison"));
    const names = side === "left" ? ["first", "second"] : ["second", "first"];
    const keys = {};
    let since = 0;
    part(node, "open").addEventListener("click", () => {
      since = performance.now();
      part(node, "invitation").hidden = true;
      part(node, "pair").hidden = false;
      node.parentElement.classList.add("comparing");
      part(node, "title").focus();
    });
    const choose = async (better) => {
      const choice = { better, dwell_ms: Math.round(performance.now() - since), idempotency_key: (keys[better] ??= uuid()) };
      if (!(await this.#save(node, conversationId, messages.first, choice))) return;
      const shown = better === "second" ? this.#replace(answer) : answer;
      if (shown !== answer) shown.finish(messages.second, this.#desk);
      this.#leave(shown);
      part(shown.node, "note").textContent = say("saved");
    };
    node.querySelectorAll(".side").forEach((box, place) => {
      new MarkdownView(part(box, "text"), () => null).draw(messages[names[place]].text);
      part(box, "choose").addEventListener("click", () => choose(names[place]));
    });
    part(node, "alike").addEventListener("click", () => choose("neither"));
    node.querySelectorAll("[data-part=skip]").forEach((button) => button.addEventListener("click", () => this.#leave(answer)));
    answer.node.append(node);
    this.#announce(say("second_ready"));
  }

  #leave(answer) {
    this.close();
    part(answer.node, "copy").focus();
  }

  // -> is the choice on disk? The same choice keeps its key through every try.
  async #save(node, conversationId, first, choice) {
    const buttons = node.querySelectorAll("button");
    buttons.forEach((button) => (button.disabled = true));
    try {
      await this.#desk.choose(conversationId, first.message_id, choice);
      return true;
    } catch (error) {
      this.#none(error);
      part(node, "note").textContent = say("not_saved", { why: say(`problem_${error.problem}`) });
      return false;
    } finally {
      buttons.forEach((button) => (button.disabled = false));
    }
  }
}
