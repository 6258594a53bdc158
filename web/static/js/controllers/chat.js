// The page's composition root: one customer, one conversation, one answer at a time.

import { clone, part, uuid } from "../helpers/dom.js";
import { SafeStorage } from "../helpers/storage.js";
import { language, say } from "../helpers/strings.js";
import { Desk, DeskError } from "../models/desk.js";
import { Answer } from "./answer.js";
import { Composer } from "./composer.js";
import { PassagePanel } from "./passage.js";
import { Person } from "./person.js";
import { Scroller } from "./scroller.js";

const POLL_MS = 1500;

class Chat {
  #desk = new Desk(new SafeStorage(() => localStorage));
  #list = document.getElementById("messages");
  #welcome = document.getElementById("welcome");
  #notice = document.getElementById("notice");
  #announcer = document.getElementById("announcer");
  #startOverButton = document.getElementById("start-over");
  #composer;
  #panel;
  #scroller;
  #person;
  #conversationId = null;
  #isAnswering = false;

  constructor() {
    const form = document.getElementById("composer");
    const drafts = new SafeStorage(() => sessionStorage);
    this.#composer = new Composer(form, drafts, { onSend: (text) => this.#send(text), onStop: () => this.#stop() });
    this.#panel = new PassagePanel(document.getElementById("passage"), part(form, "input"));
    this.#scroller = new Scroller(document.getElementById("scroller"), this.#list.parentElement, document.getElementById("jump"));
    const [conversation, announce, orNotice] = [() => this.#conversation(), (text) => this.#announce(text), (step) => this.#orNotice(step)];
    this.#person = new Person(this.#desk, this.#list, { conversation, announce, orNotice });
    this.#startOverButton.addEventListener("click", () => this.#startOver());
    document.addEventListener("keydown", (event) => this.#escape(event));
    addEventListener("offline", () => this.#notify(say("problem_offline")));
    addEventListener("online", () => this.#notify(""));
  }

  async start() {
    this.#notify(navigator.onLine ? "" : say("problem_offline"));
    this.#composer.focus();
    await Promise.all([this.#orNotice(this.#greet()), this.#orNotice(this.#resume())]);
  }

  async #greet() {
    const shop = await this.#desk.shop(language);
    document.getElementById("shop-name").textContent = shop.name;
    document.title = `${shop.name} · ${document.title}`;
    part(this.#welcome, "greeting").textContent = shop.greeting;
    part(this.#welcome, "suggestions").replaceChildren(...shop.suggestions.slice(0, 4).map((text) => this.#suggestion(text)));
  }

  #suggestion(text) {
    const node = clone("suggestion");
    part(node, "button").textContent = text;
    part(node, "button").addEventListener("click", () => {
      this.#send(text);
      this.#composer.focus();
    });
    return node;
  }

  async #resume() {
    const conversation = await this.#desk.current();
    if (!conversation || this.#isAnswering || this.#conversationId) return;
    this.#conversationId = conversation.conversation_id;
    conversation.messages.forEach((message) => this.#draw(message));
    this.#person.follow(conversation.conversation_id, conversation.seq);
    const answered = conversation.answering ? await this.#untilAnswered(conversation) : conversation;
    answered.messages.slice(conversation.messages.length).forEach((message) => this.#announce(this.#draw(message)));
    const last = answered.messages.at(-1);
    const asked = answered.messages.findLast(({ role }) => role === "user")?.text;
    if (asked === this.#composer.text.trim()) this.#composer.fill("");
    if (["waiting", "human"].includes(answered.state)) return;
    if (last?.role === "user" || last?.status === "interrupted") this.#offerAgain(asked);
  }

  // An answer that began before a reload, or in another tab, is fetched whole when it is there.
  async #untilAnswered(conversation) {
    const waiting = this.#place(new Answer(this.#panel));
    this.#setAnswering(true);
    try {
      let now = conversation;
      while (now.answering) {
        await new Promise((resolve) => setTimeout(resolve, POLL_MS));
        now = (await this.#desk.current()) ?? { ...conversation, answering: false };
      }
      return now;
    } finally {
      waiting.node.remove();
      this.#setAnswering(false);
    }
  }

  // -> the words of an answer, as they are read aloud; nothing for a question
  #draw(message) {
    this.#setStarted(true);
    if (message.role === "agent") return this.#person.draw(message);
    if (message.role === "assistant") return this.#place(new Answer(this.#panel)).finish(message, this.#desk);
    const node = clone("question");
    part(node, "text").textContent = message.text;
    this.#list.append(node);
    return "";
  }

  #place(answer) {
    this.#list.append(answer.node);
    return answer;
  }

  #offerAgain(text) {
    const answer = this.#place(new Answer(this.#panel));
    answer.fail(say("problem_cut"), say("try_again"), () => {
      answer.node.remove();
      this.#send(text);
    });
  }

  async #send(text) {
    if (this.#isAnswering) return;
    this.#list.querySelectorAll(".problem button").forEach((button) => button.remove());
    this.#draw({ role: "user", text });
    if (text === this.#composer.text.trim()) this.#composer.clear();
    this.#scroller.toLatest();
    const kept = await this.#turn({ text, client_message_id: uuid() }, this.#place(new Answer(this.#panel)));
    if (kept?.status === "interrupted") this.#offerAgain(text);
  }

  // The same client_message_id again: an answer that the server has already is shown, not made twice. If all it has is
  // the beginning of one, the question is asked anew.
  async #retry(message, answer) {
    this.#composer.focus();
    answer.restart();
    const kept = await this.#turn(message, answer);
    if (kept?.status === "interrupted") this.#send(message.text);
  }

  async #conversation() {
    this.#conversationId ??= (await this.#desk.open(language)).conversation_id;
    this.#person.follow(this.#conversationId);
    return this.#conversationId;
  }

  // -> the answer as the server keeps it, or undefined when it failed or a person answers
  async #turn(message, answer) {
    this.#setAnswering(true);
    this.#announce("");
    try {
      const conversationId = await this.#conversation();
      let kept;
      for await (const event of this.#desk.ask(conversationId, message)) kept = this.#take(event, answer);
      return kept;
    } catch (error) {
      return this.#fail(error, message, answer);
    } finally {
      this.#setAnswering(false);
    }
  }

  #take(event, answer) {
    if (event.name === "accepted") this.#composer.forget();
    if (event.name === "state") answer.wait(event, () => this.#answerNow());
    if (event.name === "delta") answer.grow(event.text);
    if (event.name === "restart") answer.restart();
    if (event.name === "held") answer.node.remove();
    if (event.name === "done") this.#announce(answer.finish(event.message, this.#desk));
    return event.message;
  }

  #fail(error, message, answer) {
    if (!(error instanceof DeskError)) throw error;
    const isOver = ["gone", "full"].includes(error.problem);
    const problem = say(`problem_${error.problem}`);
    this.#announce(problem);
    answer.fail(problem, say(isOver ? "start_over" : "try_again"), async () => {
      if (!isOver) return this.#retry(message, answer);
      await this.#startOver();
      return this.#composer.fill(message.text);
    });
  }

  #answerNow() {
    this.#orNotice(this.#desk.answerNow(this.#conversationId));
    this.#composer.focus();
  }

  #stop() {
    // A failed stop needs no words of its own: the stream it meant to end fails the same way.
    if (this.#conversationId) this.#orNotice(this.#desk.stop(this.#conversationId));
  }

  async #startOver() {
    if (this.#isAnswering) return;
    this.#panel.close();
    await this.#person.leave();
    if (this.#desk.isKnown) {
      const opened = await this.#orNotice(this.#desk.open(language));
      if (!opened) return;
      this.#conversationId = opened.conversation_id;
      this.#person.follow(opened.conversation_id);
    }
    this.#list.replaceChildren();
    this.#setStarted(false);
    this.#composer.focus();
  }

  #setStarted(isStarted) {
    part(this.#welcome, "suggestions").hidden = isStarted;
    this.#startOverButton.hidden = !isStarted;
  }

  #setAnswering(isAnswering) {
    this.#isAnswering = isAnswering;
    this.#composer.isAnswering = isAnswering;
    this.#startOverButton.disabled = isAnswering;
  }

  #escape(event) {
    if (event.key !== "Escape" || event.isComposing) return;
    if (this.#panel.isOpen) this.#panel.close();
    else if (this.#isAnswering) this.#stop();
  }

  // -> the step's result, or undefined after its problem was shown
  async #orNotice(step) {
    try {
      return await step;
    } catch (error) {
      if (!(error instanceof DeskError)) throw error;
      return this.#notify(say(`problem_${error.problem}`));
    }
  }

  #notify(text) {
    this.#notice.textContent = text;
    this.#notice.hidden = !text;
    if (text) this.#announce(text);
  }

  // Read aloud once, whole: screen readers hear neither single tokens nor the waiting.
  #announce(text) {
    this.#announcer.textContent = text;
  }
}

new Chat().start();
