// One answer on the page: waiting, growing, finished or failed.

import { clone, part } from "../helpers/dom.js";
import { MarkdownView, growing } from "../helpers/markdown.js";
import { say } from "../helpers/strings.js";
import { Feedback } from "./feedback.js";

const QUIET_S = 3;
const PATIENT_S = 8;

export class Answer {
  node = clone("answer");
  #text = "";
  #view;
  #citations = new Map();
  #frame = 0;
  #clock = 0;
  #panel;
  #onAgain;

  // `onAgain(message)` is called when the customer wants another answer in the place of this one.
  constructor(panel, onAgain) {
    this.#panel = panel;
    this.#onAgain = onAgain;
    this.#view = new MarkdownView(part(this.node, "text"), (number) => this.#cite(number));
  }

  // `onNow` is called when the customer wants the answer at once; where a thought can be cut short, that is offered after a while.
  wait({ state, place, eta_s: eta, can_answer_now: canAnswerNow }, onNow) {
    this.#stopClock();
    if (state === "queued") return this.#say(say(eta ? "queued_time" : "queued", { place, seconds: eta }));
    this.#say(state === "looking_up" ? say("looking_up") : "");
    if (state !== "thinking") return undefined;
    const began = Date.now();
    let isOffered = !canAnswerNow;
    this.#clock = setInterval(() => {
      const seconds = Math.floor((Date.now() - began) / 1000);
      if (seconds >= QUIET_S) this.#say(say("thinking", { seconds }));
      if (seconds < PATIENT_S || isOffered) return;
      isOffered = true;
      this.#offerNow(onNow);
    }, 1000);
    return undefined;
  }

  // Several deltas between two frames are one drawing.
  grow(text) {
    this.#text += text;
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      if (this.#text.trim()) this.#quiet();
      this.#view.draw(growing(this.#text));
    });
  }

  // Shows the stored message; returns its words without marks, as they are read aloud and copied.
  finish(message, desk) {
    this.#quiet();
    this.#text = message.text;
    this.#citations = new Map((message.citations ?? []).map((citation) => [citation.number, citation]));
    this.#view.draw(message.text);
    this.#settleCitations();
    this.#sayEnding(message);
    const plain = this.#plainText();
    part(this.node, "text").hidden = !message.text.trim();
    new Feedback(part(this.node, "actions"), message, desk, plain);
    part(this.node, "again").addEventListener("click", () => this.#onAgain(message));
    return plain;
  }

  // Says what happened and offers the next step; what was written so far stays.
  fail(problem, next, onNext) {
    this.#quiet();
    this.#view.draw(this.#text);
    const box = clone("problem");
    part(box, "what").textContent = problem;
    part(box, "next").textContent = next;
    part(box, "next").addEventListener("click", onNext);
    part(this.node, "problem").replaceChildren(box);
  }

  // Forgets what was written: the question is sent again, or the server takes its beginning back.
  restart() {
    this.#text = "";
    this.#view.draw("");
    part(this.node, "problem").replaceChildren();
    part(this.node, "state").hidden = false;
    this.wait({});
  }

  #cite(number) {
    const button = clone("citation");
    button.textContent = number;
    button.dataset.number = number;
    button.addEventListener("click", () => {
      if (this.#citations.has(number)) this.#panel.toggle(this.#citations.get(number), button);
    });
    return button;
  }

  // While the answer grows every [n] looks like a citation; now it is known which ones are.
  #settleCitations() {
    for (const button of this.node.querySelectorAll(".citation")) {
      const citation = this.#citations.get(Number(button.dataset.number));
      button.disabled = !citation;
      if (citation) button.setAttribute("aria-label", say("citation", citation));
      else button.replaceWith(`[${button.dataset.number}]`);
    }
  }

  #plainText() {
    const copy = part(this.node, "text").cloneNode(true);
    copy.querySelectorAll(".citation").forEach(({ parentElement: tied }) => (tied.textContent = tied.firstChild.data.trimEnd()));
    copy.querySelectorAll("br").forEach((line) => line.replaceWith("\n"));
    const lines = (block) => (block.matches("ul, ol") ? [...block.children] : [block]);
    const words = (block) => lines(block).map((line) => line.textContent.trim()).join("\n");
    return [...copy.children].map(words).join("\n\n");
  }

  #sayEnding({ status, finish_reason: reason }) {
    const key = { stopped: "ended_stopped", interrupted: "ended_interrupted" }[status] ?? (reason === "length" ? "ended_length" : "");
    part(this.node, "ending").hidden = !key;
    part(this.node, "ending").textContent = key && say(key);
  }

  #offerNow(onNow) {
    const button = clone("now");
    button.addEventListener("click", () => {
      button.remove();
      onNow();
    });
    part(this.node, "state").append(button);
  }

  #say(text) {
    part(this.node, "state-text").textContent = text;
  }

  #quiet() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#stopClock();
    part(this.node, "state").hidden = true;
  }

  #stopClock() {
    clearInterval(this.#clock);
    this.node.querySelector(".now")?.remove();
  }
}
