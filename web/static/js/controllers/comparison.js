// A second answer beside the first: offered in one quiet line, shown side by side when the customer cares to look, gone when they go on.

import { clone, part, uuid } from "../helpers/dom.js";
import { MarkdownView } from "../helpers/markdown.js";
import { say } from "../helpers/strings.js";
import { DeskError } from "../models/desk.js";

// Sources are for reading, not for choosing: here their numbers open nothing.
const cited = (number) => Object.assign(clone("citation"), { textContent: number, disabled: true });

export class Comparison {
  #desk;
  #notices;
  #replace;
  #line = new AbortController();
  #node = null;

  // `replace(answer)` puts an empty answer in the place of another, and returns it.
  constructor(desk, notices, replace) {
    [this.#desk, this.#notices, this.#replace] = [desk, notices, replace];
  }

  // Nothing waits for it, and nothing is said when none comes.
  async begin(conversationId, message, answer) {
    this.close();
    if (!message?.has_second) return;
    const { signal } = (this.#line = new AbortController());
    const offer = await this.#desk.second(conversationId, message.message_id, signal).catch((error) => (error instanceof DeskError ? null : Promise.reject(error)));
    if (offer && !signal.aborted && answer.node.isConnected) this.#invite(conversationId, message, offer, answer);
  }

  close() {
    this.#line.abort();
    this.#node?.parentElement.classList.toggle("comparing", false);
    this.#node?.remove();
    this.#node = null;
  }

  #invite(conversationId, first, { message: second, side }, answer) {
    const node = (this.#node = clone("comparison"));
    let since = 0;
    part(node, "open").addEventListener("click", () => {
      since = performance.now();
      part(node, "invitation").hidden = true;
      part(node, "pair").hidden = false;
      answer.node.classList.toggle("comparing", true);
      part(node, "title").focus();
    });
    const choose = async (better) => {
      const choice = { better, dwell_ms: Math.round(performance.now() - since), idempotency_key: uuid() };
      // Where the conversation has gone on, in another tab say, there is nothing to choose any more.
      const gone = (error) => (error.status === 404 ? this.close() : Promise.reject(error));
      const kept = await this.#notices.orShow(this.#desk.choose(conversationId, first.message_id, choice).then(() => true, gone));
      if (!kept || this.#node !== node) return;
      const shown = better === "second" ? this.#replace(answer) : answer;
      if (shown !== answer) shown.finish(second, this.#desk);
      this.#leave(shown);
      part(shown.node, "note").textContent = say("saved");
    };
    const sides = [["first", first.text], ["second", second.text]];
    (side === "left" ? sides : sides.reverse()).forEach(([name, text], place) => {
      new MarkdownView(node.querySelectorAll(".side > .text")[place], cited).draw(text);
      node.querySelectorAll(".side > .chip")[place].addEventListener("click", () => choose(name));
    });
    part(node, "alike").addEventListener("click", () => choose("neither"));
    node.querySelectorAll("[data-part=skip]").forEach((button) => button.addEventListener("click", () => this.#leave(answer)));
    answer.node.append(node);
    this.#notices.announce(say("second_ready"));
  }

  #leave(answer) {
    this.close();
    part(answer.node, "copy").focus();
  }
}
