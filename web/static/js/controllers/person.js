// Talking to a person: who has the conversation, what they write, a message for when nobody is there, and how it was.

import { clone, part, uuid } from "../helpers/dom.js";
import { say } from "../helpers/strings.js";
import { DeskError } from "../models/desk.js";

const RETRY_MS = [1000, 2000, 5000, 15_000, 30_000];
const BOT = { state: "bot" };
const byId = (id) => document.getElementById(id);

export class Person {
  #desk;
  #list;
  #chat;
  #banner = byId("banner");
  #conversationId = null;
  #seq = 0;
  #line = new AbortController();
  #view = BOT;
  #drawn = new Set();
  #sheet = null;

  // `chat.conversation()` resolves to the conversation's id, `chat.announce(text)` is read aloud, `chat.orNotice(step)` shows what failed.
  constructor(desk, list, chat) {
    [this.#desk, this.#list, this.#chat] = [desk, list, chat];
    byId("want-person").addEventListener("click", () => this.#want());
    list.addEventListener("click", (event) => event.target.closest("[data-part=person]") && this.#want());
    part(this.#banner, "form").addEventListener("click", () => this.#openForm());
    part(this.#banner, "bot").addEventListener("click", () => this.#act(this.#desk.bot(this.#conversationId)));
  }

  // From now on everything about this conversation is heard, from message `seq` on.
  follow(conversationId, seq = 0) {
    if (conversationId === this.#conversationId) return;
    this.#line.abort();
    this.#line = new AbortController();
    [this.#conversationId, this.#seq] = [conversationId, seq];
    this.#show(BOT);
    this.#listen(this.#line.signal);
  }

  // Another conversation begins; nobody shall wait for this one any more.
  async leave() {
    this.#close();
    if (this.#view.state === "waiting" && !this.#view.has_form) await this.#chat.orNotice(this.#desk.bot(this.#conversationId));
    this.#line.abort();
    this.#conversationId = null;
    this.#show(BOT);
  }

  // -> the words of an agent's message, as they are read aloud
  draw({ message_id: id, author, text }) {
    if (this.#drawn.has(id)) return "";
    this.#drawn.add(id);
    const node = clone("agent");
    part(node, "author").textContent = author;
    part(node, "text").textContent = text;
    this.#list.append(node);
    return `${author}: ${text}`;
  }

  async #listen(signal) {
    for (let tries = 0; !signal.aborted; tries += 1) {
      try {
        for await (const event of this.#desk.listen(this.#conversationId, this.#seq, signal)) {
          tries = 0;
          if (!signal.aborted) this.#take(event);
        }
      } catch (error) {
        if (!(error instanceof DeskError)) throw error;
        if (error.problem === "gone") return;
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(tries, RETRY_MS.length - 1)]));
    }
  }

  #take({ name, message, seq, ...view }) {
    if (name === "state") return this.#show(view);
    this.#seq = seq;
    return this.#chat.announce(this.draw(message));
  }

  #show(view) {
    const before = this.#view;
    this.#view = view;
    document.body.dataset.state = view.state;
    const words = this.#words(view);
    part(this.#banner, "words").textContent = words;
    this.#banner.hidden = !words;
    part(this.#banner, "form").hidden = !view.offers_form;
    part(this.#banner, "bot").hidden = view.state !== "waiting" || view.has_form;
    byId("role").textContent = view.state === "human" ? say("role_person", view) : say("role");
    byId("fine-print").hidden = view.state === "human";
    if (view.state === before.state) return;
    if (before.state === "resolved") this.#close();
    if (view.state === "resolved" && !view.is_rated) this.#askHowItWas();
  }

  #words({ state, place, is_typing: isTyping, offers_form: offersForm, has_form: hasForm, agent }) {
    if (state === "waiting" && hasForm) return say("person_has_form");
    if (state === "waiting") return say(offersForm ? "person_late" : "person_waiting", { place });
    if (state === "human") return say(isTyping ? "person_typing" : "person_here", { agent });
    if (state === "bot" && offersForm) return say("person_away");
    return "";
  }

  async #want() {
    const view = await this.#act(this.#chat.conversation().then((id) => this.#desk.person(id)));
    if (view?.offers_form) this.#openForm();
  }

  async #act(step) {
    const view = await this.#chat.orNotice(step);
    if (view) this.#show(view);
    return view;
  }

  #openForm() {
    const form = this.#open("form");
    const { opens_at_ms: opens } = this.#view;
    const when = opens && new Intl.DateTimeFormat(document.documentElement.lang, { weekday: "long", hour: "numeric", minute: "numeric" }).format(opens);
    part(form, "when").textContent = opens ? say("form_when", { when }) : "";
    part(form, "cancel").addEventListener("click", () => this.#close());
    form.elements.contact.focus();
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const [name, contact, text] = ["name", "contact", "text"].map((key) => form.elements[key].value.trim());
      try {
        this.#show(await this.#desk.leave(this.#conversationId, { name, [contact.includes("@") ? "email" : "phone"]: contact, text }));
        this.#close();
      } catch (error) {
        if (!(error instanceof DeskError)) throw error;
        part(form, "note").textContent = say(error.status === 400 ? "form_unreadable" : `problem_${error.problem}`);
      }
    });
  }

  #askHowItWas() {
    const form = this.#open("csat");
    let chosen = 0;
    const save = async (value, comment) => {
      const rating = { value, comment, idempotency_key: uuid() };
      if (!(await this.#chat.orNotice(this.#desk.rate(this.#conversationId, rating).then(() => true)))) return false;
      chosen = value;
      form.querySelectorAll(".score").forEach((button) => button.setAttribute("aria-pressed", String(Number(button.textContent) === value)));
      part(form, "note").textContent = say("saved");
      return true;
    };
    for (const button of form.querySelectorAll(".score")) {
      button.setAttribute("aria-label", say("csat_score", { value: button.textContent }));
      button.addEventListener("click", async () => {
        part(form, "more").hidden = !(await save(Number(button.textContent), null)) && !chosen;
      });
    }
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const comment = form.elements.comment.value.trim();
      if (!comment || (await save(chosen, comment))) part(form, "more").hidden = true;
    });
  }

  // -> the form on a fresh sheet at the end of the conversation; there is one sheet at a time
  #open(template) {
    this.#close();
    this.#sheet = clone(template);
    this.#list.append(this.#sheet);
    return this.#sheet.querySelector("form");
  }

  #close() {
    this.#sheet?.remove();
    this.#sheet = null;
  }
}
