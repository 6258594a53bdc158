// Under a finished answer: copy, a thumb up or down, and why. A thumb counts as pressed once the server has it on disk.

import { clone, copied, part, uuid } from "../helpers/dom.js";
import { say } from "../helpers/strings.js";
import { DeskError } from "../models/desk.js";

const UP = 1;
const DOWN = -1;
const MAX_TAGS = 5;
const TAGS = { [UP]: ["helpful", "clear", "quick"], [DOWN]: ["wrong", "outdated", "unclear", "not_my_question", "too_long", "impolite"] };

export class Feedback {
  #node;
  #message;
  #desk;
  #form = null;
  #saved = null;
  #isSaving = false;

  constructor(node, message, desk, plainText) {
    this.#node = node;
    this.#message = message;
    this.#desk = desk;
    node.hidden = false;
    part(node, "copy").hidden = !plainText;
    part(node, "copy").addEventListener("click", () => this.#copy(plainText));
    for (const value of [UP, DOWN]) {
      this.#thumb(value).hidden = !message.completion_id;
      // The second click of a double click is not another press.
      this.#thumb(value).addEventListener("click", (event) => event.detail < 2 && this.#press(value));
    }
    this.#show(message.thumb ?? null);
    if (message.asks_thumb && !message.thumb) this.#say(say("asks_thumb"));
  }

  #thumb(value) {
    return part(this.#node, value === UP ? "up" : "down");
  }

  async #copy(text) {
    const isCopied = await copied(text);
    this.#say(say(isCopied ? "copied" : "not_copied"));
    const signal = { completion_id: this.#message.completion_id, kind: "copy", value: UP, idempotency_key: uuid() };
    if (isCopied && signal.completion_id) this.#desk.signal(signal).catch((error) => error instanceof DeskError || Promise.reject(error));
  }

  // The pressed thumb again opens or closes its reasons; the other one is a changed vote.
  async #press(value) {
    if (value !== this.#saved) {
      this.#close();
      if (!(await this.#save({ value, tags: [], comment: null }))) return;
    } else if (this.#form) {
      this.#close();
      return;
    }
    this.#open(value);
  }

  // -> is it on disk? One signal keeps one idempotency key through every retry of it.
  async #save(vote, key = uuid()) {
    if (this.#isSaving) return false;
    this.#isSaving = true;
    const signal = { completion_id: this.#message.completion_id, kind: "thumb", ...vote, idempotency_key: key };
    this.#say(say("saving"));
    try {
      await this.#desk.signal(signal);
    } catch (error) {
      if (!(error instanceof DeskError)) throw error;
      const retry = clone("retry");
      retry.addEventListener("click", () => this.#again(vote, key));
      this.#say(say("not_saved", { why: say(`problem_${error.problem}`) }), retry);
      return false;
    } finally {
      this.#isSaving = false;
    }
    this.#show(vote.value);
    this.#say(say("saved"));
    return true;
  }

  async #again(vote, key) {
    if (!(await this.#save(vote, key))) return;
    if (vote.tags.length || vote.comment) this.#close();
    else this.#open(vote.value);
  }

  #show(value) {
    this.#saved = value;
    for (const each of [UP, DOWN]) this.#thumb(each).setAttribute("aria-pressed", String(value === each));
  }

  #open(value) {
    this.#form = clone("reasons");
    part(this.#form, "title").textContent = say(value === UP ? "why_up" : "why_down");
    part(this.#form, "tags").append(...TAGS[value].map((tag) => this.#tag(tag)));
    part(this.#form, "comment").hidden = value === UP;
    part(this.#form, "cancel").addEventListener("click", () => this.#close(this.#thumb(value)));
    this.#form.addEventListener("change", () => this.#limitTags());
    this.#form.addEventListener("submit", (event) => this.#submit(event, value));
    this.#node.after(this.#form);
  }

  #tag(tag) {
    const node = clone("tag");
    part(node, "box").value = tag;
    part(node, "label").textContent = say(`tag_${tag}`);
    return node;
  }

  #limitTags() {
    const boxes = [...this.#form.querySelectorAll("[name=tag]")];
    const isFull = boxes.filter((box) => box.checked).length >= MAX_TAGS;
    for (const box of boxes) box.disabled = isFull && !box.checked;
  }

  async #submit(event, value) {
    event.preventDefault();
    const given = new FormData(this.#form);
    const vote = { value, tags: given.getAll("tag"), comment: given.get("comment").trim() || null };
    if (!vote.tags.length && !vote.comment) return this.#close(this.#thumb(value));
    if (!(await this.#save(vote))) return undefined;
    return this.#close(this.#thumb(value));
  }

  #close(focus) {
    this.#form?.remove();
    this.#form = null;
    focus?.focus();
  }

  #say(text, ...more) {
    part(this.#node, "note").replaceChildren(text, ...more);
  }
}
