// The page's composition root: one customer, one conversation, one answer at a time.

import { clone, part, uuid } from "../helpers/dom.js";
import { SafeStorage } from "../helpers/storage.js";
import { site } from "../helpers/site.js";
import { language, say } from "../helpers/strings.js";
import { Desk, DeskError } from "../models/desk.js";
import { Answer } from "./answer.js";
import { Comparison } from "./comparison.js";
import { Composer } from "./composer.js";
import { Consent } from "./consent.js";
import { Confirm } from "./confirm.js";
import { Editing } from "./editing.js";
import { Host } from "./host.js";
import { Notices } from "./notices.js";
import { PassagePanel } from "./passage.js";
import { Person } from "./person.js";
import { Scroller } from "./scroller.js";
import { Welcome } from "./welcome.js";

class Chat {
  #desk = new Desk(new SafeStorage(() => localStorage, site.id), site.id);
  #host = new Host(() => this.#composer.focus());
  #list = document.getElementById("messages");
  #welcome = new Welcome(document.getElementById("welcome"), (text) => this.#send(text));
  #notices = new Notices(document.getElementById("notice"), document.getElementById("announcer"));
  #confirm = new Confirm(this.#list, (words, decision) => this.#send(words, decision));
  #comparison = new Comparison(this.#desk, this.#notices, (old) => this.#answer(old));
  #startOverButton = document.getElementById("start-over");
  #composer;
  #editing;
  #panel;
  #scroller;
  #person;
  #conversationId = null;
  #isAnswering = false;

  constructor() {
    const form = document.getElementById("composer");
    this.#composer = new Composer(form, new SafeStorage(() => sessionStorage, site.id), {
      onSend: (text) => this.#send(text),
      onStop: () => this.#stop(),
      onFiles: () => this.#notices.show(say("no_files")),
    });
    this.#editing = new Editing(document.getElementById("editing"), this.#list, this.#composer);
    this.#panel = new PassagePanel(document.getElementById("passage"), part(form, "input"));
    this.#scroller = new Scroller(document.getElementById("scroller"), this.#list.parentElement, document.getElementById("jump"));
    this.#person = new Person(this.#desk, this.#list, {
      conversation: () => this.#conversation(),
      announce: (text) => this.#hear(text),
      orNotice: (step) => this.#notices.orShow(step),
    });
    new Consent(document.getElementById("consent"), this.#desk, (step) => this.#notices.orShow(step));
    this.#startOverButton.addEventListener("click", () => this.#startOver());
    document.addEventListener("keydown", (event) => event.key === "Escape" && !event.isComposing && this.#escape());
  }

  async start() {
    if (parent === window) this.#composer.focus();
    const greeted = this.#notices.orShow(this.#welcome.greet(this.#desk));
    if (await this.#host.meet(site.origins)) await this.#notices.orShow(this.#desk.know(() => this.#host.identify()));
    await Promise.all([greeted, this.#notices.orShow(this.#resume())]);
  }

  async #resume() {
    const conversation = await this.#desk.current();
    if (!conversation || this.#isAnswering || this.#conversationId) return;
    this.#conversationId = conversation.conversation_id;
    conversation.messages.forEach((message) => this.#draw(message));
    this.#person.follow(conversation.conversation_id, conversation.seq);
    const answered = conversation.answering ? await this.#untilAnswered(conversation) : conversation;
    if (answered !== conversation) {
      this.#list.replaceChildren();
      this.#hear(answered.messages.map((message) => this.#draw(message)).at(-1));
    }
    const last = answered.messages.at(-1);
    this.#confirm.show(answered.confirm ?? last);
    const asked = answered.messages.findLast(({ role }) => role === "user")?.text;
    if (asked === this.#composer.text.trim()) this.#composer.fill("");
    const isCut = last?.role === "user" || last?.status === "interrupted";
    if (isCut && !["waiting", "human"].includes(answered.state)) this.#offerAgain(asked);
  }

  // An answer that began before a reload, or in another tab, is fetched whole when it is there.
  async #untilAnswered(conversation) {
    const waiting = this.#answer();
    this.#setAnswering(true);
    try {
      return await this.#desk.answered(conversation);
    } finally {
      waiting.node.remove();
      this.#setAnswering(false);
    }
  }

  // -> the words of an answer, as they are read aloud; nothing for a question
  #draw(message) {
    this.#setStarted(true);
    if (message.role === "agent") return this.#person.draw(message);
    if (message.role === "assistant") return this.#answer().finish(message, this.#desk);
    const node = clone("question");
    part(node, "text").textContent = message.text;
    node.dataset.messageId = message.message_id ?? "";
    part(node, "edit").addEventListener("click", () => this.#isAnswering || this.#editing.begin(node));
    this.#list.append(node);
    return "";
  }

  // At the end, or in the place of another.
  #answer(old) {
    const answer = new Answer(this.#panel, (message) => this.#regenerate(message, answer));
    old ? old.node.replaceWith(answer.node) : this.#list.append(answer.node);
    return answer;
  }

  #offerAgain(text) {
    const answer = this.#answer();
    answer.fail(say("problem_cut"), say("try_again"), () => answer.node.remove() || this.#send(text));
  }

  async #send(text, decision) {
    if (this.#isAnswering) return;
    this.#list.querySelectorAll(".problem button").forEach((button) => button.remove());
    const replaces = this.#editing.finish();
    this.#draw({ role: "user", text });
    if (text === this.#composer.text.trim()) this.#composer.clear();
    this.#notices.show("");
    this.#composer.focus();
    this.#scroller.toLatest();
    const kept = await this.#turn(decision ?? { text, client_message_id: uuid(), replaces }, this.#answer());
    if (kept?.status === "interrupted") this.#offerAgain(text);
  }

  async #regenerate({ message_id: regenerates }, old) {
    if (this.#isAnswering) return;
    this.#panel.close();
    this.#composer.focus();
    await this.#turn({ regenerates }, this.#answer(old));
  }

  // The same client_message_id again: an answer that the server has is shown, not made twice; of a beginning, the question is asked anew.
  async #retry(message, answer) {
    this.#composer.focus();
    answer.restart();
    const kept = await this.#turn(message, answer);
    if (kept?.status === "interrupted" && message.text) this.#send(message.text);
  }

  async #conversation() {
    this.#conversationId ??= (await this.#desk.open(language)).conversation_id;
    this.#person.follow(this.#conversationId);
    return this.#conversationId;
  }

  // -> the answer as the server keeps it, or undefined when it failed or a person answers
  async #turn(message, answer) {
    this.#setAnswering(true);
    this.#confirm.close();
    this.#comparison.close();
    this.#notices.announce("");
    try {
      const conversationId = await this.#conversation();
      let kept;
      for await (const event of this.#desk.answer(conversationId, message)) kept = this.#take(event, answer);
      this.#comparison.begin(conversationId, kept, answer);
      return kept;
    } catch (error) {
      return this.#fail(error, message, answer);
    } finally {
      this.#setAnswering(false);
    }
  }

  #take(event, answer) {
    if (event.name === "accepted") {
      this.#composer.forget();
      this.#list.querySelector(".question:nth-last-child(-n + 2)").dataset.messageId = event.message_id;
    }
    if (event.name === "state") answer.wait(event, () => this.#answerNow());
    if (event.name === "delta") answer.grow(event.text);
    if (event.name === "restart") answer.restart();
    if (event.name === "confirm" || event.message?.quick_replies?.length) this.#confirm.show(event.message ?? event);
    if (event.name === "held") answer.node.remove();
    if (event.name === "done") this.#hear(answer.finish(event.message, this.#desk));
    return event.message;
  }

  #hear(answer) {
    this.#notices.announce(answer);
    this.#host.tell("answered");
  }

  #fail(error, message, answer) {
    if (!(error instanceof DeskError)) throw error;
    const isOver = ["gone", "full"].includes(error.problem);
    const problem = say(`problem_${error.problem}`);
    this.#notices.announce(problem);
    answer.fail(problem, say(isOver ? "start_over" : "try_again"), async () => {
      if (!isOver) return this.#retry(message, answer);
      await this.#startOver();
      return this.#composer.fill(message.text ?? "");
    });
  }

  #answerNow() {
    this.#notices.orShow(this.#desk.answerNow(this.#conversationId));
    this.#composer.focus();
  }

  #stop() {
    // A failed stop needs no words of its own: the stream it meant to end fails the same way.
    if (this.#conversationId) this.#notices.orShow(this.#desk.stop(this.#conversationId));
  }

  async #startOver() {
    if (this.#isAnswering) return;
    this.#panel.close();
    await this.#person.leave();
    if (this.#editing.isOn) this.#editing.stop();
    if (this.#desk.isKnown) {
      const opened = await this.#notices.orShow(this.#desk.open(language));
      if (!opened) return;
      this.#conversationId = opened.conversation_id;
      this.#person.follow(opened.conversation_id);
    }
    this.#list.replaceChildren();
    this.#setStarted(false);
    this.#composer.focus();
  }

  #setStarted(isStarted) {
    this.#welcome.isOver = isStarted;
    this.#startOverButton.hidden = !isStarted;
  }

  #setAnswering(isAnswering) {
    this.#isAnswering = isAnswering;
    this.#composer.isAnswering = isAnswering;
    this.#startOverButton.disabled = isAnswering;
  }

  #escape() {
    if (this.#panel.isOpen) this.#panel.close();
    else if (this.#editing.isOn) this.#editing.stop();
    else if (this.#isAnswering) this.#stop();
    else this.#host.tell("close");
  }
}

new Chat().start();
