// The inbox: who waits, live; one conversation's story; the reply. Which conversation is open stands in the URL.

import { clone, part, uuid } from "../helpers/dom.js";
import { events } from "../helpers/sse.js";
import { language, say } from "../helpers/strings.js";
import { caution, complain, open as request, send } from "./forms.js";

const API = "/console/api";
const TYPING_EVERY_MS = 3000;
const RETRY_MS = 3000;
const byId = (id) => document.getElementById(id);

class Inbox {
  #me = byId("inbox").dataset.me;
  #text = byId("text");
  #rows = [];
  #story = null;
  #unsent = null;
  #typedAt = 0;
  #canned = [];
  #moving = null;

  start() {
    byId("reply").addEventListener("submit", (event) => this.#try(this.#reply(event)));
    this.#text.addEventListener("input", () => this.#typing());
    this.#text.addEventListener("keydown", (event) => this.#key(event));
    byId("suggest").addEventListener("click", () => this.#try(this.#suggest()));
    byId("keep").addEventListener("click", () => this.#try(this.#keep()));
    byId("canned").addEventListener("change", (event) => this.#useCanned(event.target.value));
    byId("assign").addEventListener("change", (event) => this.#assign(event.target));
    byId("rows").addEventListener("click", (event) => this.#choose(event));
    for (const button of document.querySelectorAll("[data-move]")) {
      button.addEventListener("click", () => this.#try(this.#move({ action: button.dataset.move })));
    }
    document.addEventListener("keydown", (event) => this.#shortcut(event));
    addEventListener("hashchange", () => this.#try(this.#open(location.hash.slice(1))));
    this.#offerNotifications();
    this.#listen();
    this.#try(this.#loadCanned());
    if (location.hash) this.#try(this.#open(location.hash.slice(1)));
  }

  async #try(step) {
    complain("");
    try {
      await step;
    } catch (error) {
      complain(error.message);
    }
  }

  async #listen() {
    for (;;) {
      try {
        for await (const { data } of events(await request("GET", `${API}/inbox/events`))) this.#list(JSON.parse(data));
      } catch (error) {
        complain(error.message);
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  #list(rows) {
    complain("");
    const known = new Set(this.#rows.map(({ id }) => id));
    const mine = rows.find(({ id }) => id === this.#story?.id);
    const was = this.#rows.find(({ id }) => id === this.#story?.id);
    rows.filter(({ id, state }) => state === "waiting" && !known.has(id)).forEach((row) => this.#announce(row));
    this.#rows = rows;
    const waiting = rows.filter(({ state }) => state === "waiting").length;
    byId("counts").textContent = waiting ? say("console_inbox_waiting_count", { count: waiting }) : "";
    byId("nobody").hidden = rows.length > 0;
    const focused = document.activeElement?.id;
    byId("rows").replaceChildren(...rows.map((row) => this.#row(row)));
    if (rows.some(({ id }) => id === focused)) byId(focused).focus();
    if (JSON.stringify(mine) !== JSON.stringify(was)) this.#try(this.#open(this.#story.id));
  }

  #row(row) {
    const node = clone("row");
    const link = node.querySelector("a");
    [link.id, link.href] = [row.id, `#${row.id}`];
    if (row.id === this.#story?.id) link.setAttribute("aria-current", "true");
    const time = { hour: "2-digit", minute: "2-digit" };
    part(node, "since").textContent = row.waiting_at_ms ? new Intl.DateTimeFormat(language, time).format(row.waiting_at_ms) : "";
    part(node, "text").textContent = row.text || "·";
    part(node, "state").textContent = this.#stateWords(row) + (row.reason ? ` · ${say(`console_inbox_reason_${row.reason}`)}` : "");
    return node;
  }

  #stateWords({ state, agent }) {
    return say(`console_inbox_state_${state}`, { agent: agent ?? "" });
  }

  #choose(event) {
    const row = event.target.closest("a");
    if (!row) return;
    event.preventDefault();
    history.pushState(null, "", row.hash);
    this.#try(this.#open(row.id));
  }

  async #open(id) {
    const told = await (await request("GET", `${API}/inbox/${encodeURIComponent(id)}`)).json();
    const story = told.conversation;
    if (this.#story?.id !== id) this.#empty();
    this.#story = story;
    byId("story").hidden = false;
    for (const link of byId("rows").querySelectorAll("a")) link.toggleAttribute("aria-current", link.id === id);
    const isMine = story.state === "human" && story.agent === this.#me;
    byId("facts").textContent = [this.#stateWords(story), story.language, id].join(" · ");
    const isWaiting = story.state === "waiting";
    const can = { take: isWaiting || story.state === "bot", resolve: isMine || isWaiting, return: isMine || isWaiting, release: isMine };
    for (const button of document.querySelectorAll("[data-move]")) button.hidden = !can[button.dataset.move];
    byId("assign").hidden = story.state !== "human";
    byId("reply").querySelector("[value=agent]").disabled = !isMine;
    const all = [...told.messages, ...told.handoffs].sort((one, other) => one.created_at_ms - other.created_at_ms);
    byId("messages").replaceChildren(...all.map((each) => (each.role ? this.#said(each) : this.#event(each))));
    byId("messages").lastElementChild?.scrollIntoView({ block: "nearest" });
  }

  #said({ role, author, text, thumb }) {
    const node = clone("said");
    node.dataset.role = role;
    part(node, "who").textContent = (author ?? say(`console_inbox_from_${role}`)) + (thumb === -1 ? ` · ${say("console_inbox_thumb_down")}` : "");
    part(node, "text").textContent = text;
    return node;
  }

  #event({ to_state: state, reason, actor, contact }) {
    const node = clone("event");
    const words = [this.#stateWords({ state, agent: actor }), say(`console_inbox_reason_${reason}`), actor];
    node.textContent = [...words, ...Object.values(contact ?? {})].join(" · ");
    return node;
  }

  #move(wish) {
    return (this.#moving = this.#moved(wish));
  }

  async #moved(wish) {
    const id = this.#story.id;
    try {
      await send(`${API}/inbox/${id}/move`, wish);
    } finally {
      await this.#open(id);
    }
    if (wish.action === "take") this.#text.focus();
  }

  #assign(choice) {
    const agent = choice.value;
    choice.value = "";
    if (agent) this.#try(this.#move({ action: "assign", agent, instead_of: this.#story.agent }));
  }

  // What is written right after taking a conversation waits until it is taken. A text that may have arrived keeps its id when it is sent again.
  async #reply(event) {
    event.preventDefault();
    await this.#moving?.catch(() => {});
    const said = { kind: event.submitter?.value || "agent", text: this.#text.value.trim() };
    if (!said.text || (said.kind === "agent" && byId("reply").querySelector("[value=agent]").disabled)) return;
    const isSame = this.#unsent?.text === said.text && this.#unsent.kind === said.kind;
    this.#unsent = isSame ? this.#unsent : { ...said, client_message_id: uuid() };
    await send(`${API}/inbox/${this.#story.id}/messages`, this.#unsent);
    this.#empty();
    await this.#open(this.#story.id);
  }

  #empty() {
    [this.#text.value, this.#unsent, this.#typedAt] = ["", null, 0];
    caution(byId("caution"), []);
  }

  #typing() {
    byId("canned").hidden = this.#text.value !== "/" || !this.#canned.length;
    if (Date.now() - this.#typedAt < TYPING_EVERY_MS || this.#story?.agent !== this.#me) return;
    this.#typedAt = Date.now();
    send(`${API}/inbox/${this.#story.id}/typing`, {}).catch(() => {});
  }

  async #suggest() {
    const response = await request("POST", `${API}/inbox/${this.#story.id}/suggest`, {});
    this.#text.value = "";
    for await (const { name, data } of events(response)) {
      if (name === "delta") this.#text.value += JSON.parse(data).text;
      if (name === "done") caution(byId("caution"), JSON.parse(data).violations);
    }
    this.#text.focus();
  }

  async #loadCanned() {
    this.#canned = await (await request("GET", `${API}/canned`)).json();
    const options = this.#canned.map(({ id, title }) => new Option(title, id));
    byId("canned").replaceChildren(new Option("/", ""), ...options);
  }

  #useCanned(id) {
    this.#text.value = this.#canned.find((each) => each.id === id)?.text ?? this.#text.value;
    byId("canned").hidden = true;
    byId("canned").value = "";
    this.#text.focus();
  }

  async #keep() {
    const text = this.#text.value.trim();
    if (!text) return;
    await send(`${API}/canned`, { title: text.split("\n")[0].slice(0, 80), text });
    await this.#loadCanned();
  }

  #key(event) {
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      byId("reply").requestSubmit(byId("reply").querySelector("[value=agent]:enabled") ?? undefined);
    }
    if (event.key === "ArrowDown" && !byId("canned").hidden) byId("canned").focus();
  }

  #shortcut(event) {
    if (event.key !== "r" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select")) return;
    event.preventDefault();
    this.#text.focus();
  }

  // Asked for by a click and never before.
  #offerNotifications() {
    const button = byId("notify");
    button.hidden = !("Notification" in window) || Notification.permission !== "default";
    button.addEventListener("click", async () => (button.hidden = (await Notification.requestPermission()) !== "default"));
  }

  #announce({ id }) {
    if (!("Notification" in window) || Notification.permission !== "granted" || !document.hidden) return;
    new Notification(say("console_inbox_somebody_waits"), { tag: id });
  }
}

if (byId("inbox")) new Inbox().start();
