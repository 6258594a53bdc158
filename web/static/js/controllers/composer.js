// Where the customer types. A draft outlives a reload; a text sent but not yet accepted counts as a draft.

import { part } from "../helpers/dom.js";
import { count, say } from "../helpers/strings.js";

const DRAFT = "kefu.draft";
const LIMIT = 4000;
const NEAR_LIMIT = 3600;

export class Composer {
  onUp = () => {};
  #form;
  #input;
  #counter;
  #send;
  #stop;
  #drafts;
  #isAnswering = false;

  // `onSend(text)` and `onStop()` are told what the customer wants, `onFiles()` that it was to send files; `drafts` is a SafeStorage.
  // `onUp()` is called when the customer looks for the last question, with the arrow key in the empty box.
  constructor(form, drafts, { onSend, onStop, onFiles }) {
    this.#form = form;
    this.#drafts = drafts;
    [this.#input, this.#counter, this.#send, this.#stop] = ["input", "counter", "send", "stop"].map((name) => part(form, name));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#canSend) onSend(this.#input.value.trim());
    });
    this.#stop.addEventListener("click", onStop);
    this.#input.addEventListener("keydown", (event) => this.#key(event));
    this.#input.addEventListener("input", () => {
      drafts.set(DRAFT, this.#input.value);
      this.#fit();
    });
    for (const kind of ["dragover", "drop", "paste"]) document.addEventListener(kind, (event) => this.#refuseFiles(event, onFiles));
    document.addEventListener("keydown", (event) => this.#slash(event));
    this.fill(drafts.get(DRAFT) ?? "");
  }

  get text() {
    return this.#input.value;
  }

  fill(text) {
    this.#input.value = text;
    this.#drafts.set(DRAFT, text);
    this.#fit();
  }

  // To be changed by hand; here a phone's keyboard is welcome.
  edit(text) {
    this.fill(text);
    this.#input.focus();
  }

  // Empties the box but keeps the draft until `forget`: the text is not safe elsewhere yet.
  clear() {
    this.#input.value = "";
    this.#fit();
  }

  forget() {
    this.#drafts.set(DRAFT, this.#input.value);
  }

  // Not where a finger points: there the focus would raise a keyboard over the answer.
  focus() {
    if (matchMedia("(pointer: fine)").matches) this.#input.focus();
  }

  set isAnswering(isAnswering) {
    const hadFocus = [this.#send, this.#stop].includes(document.activeElement);
    this.#isAnswering = isAnswering;
    this.#send.hidden = isAnswering;
    this.#stop.hidden = !isAnswering;
    this.#fit();
    if (hadFocus) this.focus();
  }

  get #canSend() {
    return !this.#isAnswering && this.#input.value.trim() !== "" && this.#length <= LIMIT;
  }

  get #length() {
    return [...this.#input.value.trim()].length;
  }

  // While an input method composes, Enter picks a candidate; Safari says so only by key code 229.
  #key(event) {
    if (event.key === "ArrowUp" && !this.#input.value) this.onUp();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    this.#form.requestSubmit();
  }

  #slash(event) {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.matches("textarea, input")) return;
    event.preventDefault();
    this.#input.focus();
  }

  // A copied table brings its picture along: there the text is what was meant.
  #refuseFiles(event, onFiles) {
    const { types } = event.dataTransfer ?? event.clipboardData;
    if (!types.includes("Files") || types.includes("text/plain")) return;
    event.preventDefault();
    if (event.type !== "dragover") onFiles();
  }

  #fit() {
    this.#input.style.height = "auto";
    this.#input.style.height = `${this.#input.scrollHeight}px`;
    const isOver = this.#length > LIMIT;
    this.#counter.hidden = this.#length < NEAR_LIMIT;
    this.#counter.textContent = say(isOver ? "too_long" : "counter", { length: count(this.#length), limit: count(LIMIT) });
    this.#counter.classList.toggle("over", isOver);
    this.#send.setAttribute("aria-disabled", String(!this.#canSend));
  }
}
