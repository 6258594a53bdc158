// The desk's API as seen from the page: visitor token, conversations, one answer as a stream of events, signals.

import { events } from "../helpers/sse.js";
import { SafeStorage } from "../helpers/storage.js";

const TOKEN = "kefu.visitor";
const POLL_MS = 1500;
// The server writes a keep-alive at least every 10 s; three missed ones are a dead line.
const SILENCE_MS = 30_000;

// `problem` names what happened, in the page's words: see the keys "problem_*" of web/i18n.
export class DeskError extends Error {
  constructor(problem, status = 0) {
    super(`${problem} ${status}`);
    Object.assign(this, { problem, status });
  }
}

const PROBLEM_BY_CODE = {
  answer_in_progress: "in_progress",
  confirm_gone: "confirm_gone",
  context_length_exceeded: "full",
  conversation_closed: "gone",
  daily_limit: "enough",
  engine_died: "cut",
  engine_down: "down",
  engine_paused: "learning",
  queue_full: "busy",
  shutting_down: "down",
  state_changed: "changed",
  upstream_failed: "down",
  upstream_timeout: "down",
};
const PROBLEM_BY_STATUS = { 401: "gone", 404: "gone", 429: "too_fast", 503: "down" };
const problemOf = (status, code) => PROBLEM_BY_CODE[code] ?? PROBLEM_BY_STATUS[status] ?? "server";

async function read(response) {
  return response.json().catch(() => {
    throw new DeskError("unreachable");
  });
}

export class Desk {
  #storage;
  #siteId;
  #identify = async () => null;
  #admission = null;
  // Told of each conversation as the server gives it.
  onConversation = () => {};

  constructor(storage, siteId) {
    this.#storage = storage;
    this.#siteId = siteId;
  }

  // From now on this is the customer that `identify()` resolves to a JWT of; the token is kept in memory alone.
  async know(identify) {
    this.#identify = identify;
    this.#storage = new SafeStorage(() => null);
    await this.#admit();
  }

  get isKnown() {
    return this.#storage.get(TOKEN) !== null;
  }

  async shop(language) {
    return read(await this.#fetch("GET", `/desk/shop?language=${language}`));
  }

  // The conversation of this visitor to go on with, or null.
  async current() {
    if (!this.isKnown) return null;
    try {
      return this.#told(await read(await this.#request("GET", "/desk/conversations/current")));
    } catch (error) {
      if (error instanceof DeskError && error.problem === "gone") return null;
      throw error;
    }
  }

  // The conversation once its answer is there.
  async answered(conversation) {
    let now = conversation;
    while (now.answering) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      now = (await this.current()) ?? { ...conversation, answering: false };
    }
    return now;
  }

  async open(language) {
    return this.#told(await read(await this.#request("POST", "/desk/conversations", { language })));
  }

  #told(conversation) {
    this.onConversation(conversation);
    return conversation;
  }

  async consent(conversationId, train) {
    return read(await this.#request("POST", `/desk/conversations/${conversationId}/consent`, { train }));
  }

  async stop(conversationId) {
    await this.#request("POST", `/desk/conversations/${conversationId}/stop`, {});
  }

  async answerNow(conversationId) {
    await this.#request("POST", `/desk/conversations/${conversationId}/answer_now`, {});
  }

  // Resolves once the signal is on disk; the same idempotency key again is the same signal.
  async signal(signal) {
    await this.#request("POST", "/desk/signals", signal);
  }

  // Another answer to compare with the answer `messageId`: {message, side: where that one stands}, or null.
  async second(conversationId, messageId, signal) {
    const path = `/desk/conversations/${conversationId}/messages/${messageId}/second`;
    for await (const event of this.#stream("POST", path, {}, { signal })) if (event.name === "offer") return event;
    return null;
  }

  // Resolves once it is on disk which of the two is better; the same idempotency key again is the same choice.
  async choose(conversationId, messageId, choice) {
    await this.#request("POST", `/desk/conversations/${conversationId}/messages/${messageId}/choice`, choice);
  }

  // A person, please; the bot again; a message for when nobody is there: each resolves to how things stand then.
  async person(conversationId) {
    return read(await this.#request("POST", `/desk/conversations/${conversationId}/person`, {}));
  }

  async bot(conversationId) {
    return read(await this.#request("POST", `/desk/conversations/${conversationId}/bot`, {}));
  }

  async leave(conversationId, form) {
    return read(await this.#request("POST", `/desk/conversations/${conversationId}/form`, form));
  }

  async rate(conversationId, rating) {
    await this.#request("POST", `/desk/conversations/${conversationId}/csat`, rating);
  }

  // To a message, once more ({regenerates: message_id} of an answer), or to a confirmation ({decides: call_id, decision}).
  // Yields {name, ...data} up to and including "done" or "held"; every other end is a DeskError.
  async *answer(conversationId, { regenerates, decides, ...message }) {
    const path = `/desk/conversations/${conversationId}`;
    const place = decides ? `calls/${decides}` : regenerates ? `messages/${regenerates}/regenerate` : "messages";
    for await (const event of this.#stream("POST", `${path}/${place}`, message)) {
      yield event;
      if (event.name === "done" || event.name === "held") return;
    }
    throw new DeskError("cut");
  }

  // Yields {name, ...data}: what agents write after message `seq`, and how things stand; until the line ends or `signal` aborts.
  async *listen(conversationId, seq, signal) {
    yield* this.#stream("GET", `/desk/conversations/${conversationId}/events`, undefined, { signal, headers: { "Last-Event-ID": seq } });
  }

  async *#stream(method, path, body, { signal, headers } = {}) {
    const line = new AbortController();
    signal?.addEventListener("abort", () => line.abort(), { signal: line.signal });
    let timer = 0;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => line.abort(), SILENCE_MS);
    };
    heard();
    try {
      const response = await this.#request(method, path, body, { signal: line.signal, headers });
      for await (const { name, data } of events(response, heard)) {
        const event = { name, ...JSON.parse(data) };
        if (name === "error") throw new DeskError(problemOf(0, event.error?.code));
        yield event;
      }
    } catch (error) {
      throw error instanceof DeskError ? error : new DeskError("cut");
    } finally {
      clearTimeout(timer);
      line.abort();
    }
  }

  async #request(method, path, body, options) {
    if (!this.isKnown) await this.#admit();
    const token = this.#storage.get(TOKEN);
    try {
      return await this.#fetch(method, path, body, { token, ...options });
    } catch (error) {
      if (error.status !== 401) throw error;
      if (this.#storage.get(TOKEN) === token) await this.#admit(token);
      return this.#fetch(method, path, body, { token: this.#storage.get(TOKEN), ...options });
    }
  }

  // A new visitor, or the same one with a fresh token; calls that meet share one admission.
  #admit(token) {
    this.#admission ??= this.#introduce(token)
      .then(read)
      .then((visitor) => this.#storage.set(TOKEN, visitor.token))
      .finally(() => (this.#admission = null));
    return this.#admission;
  }

  // Whom the server does not take for a customer of the site goes on as anybody; why is in its log.
  async #introduce(token) {
    const customer = await this.#identify();
    if (!customer) return this.#fetch("POST", "/desk/visitors", {}, { token });
    try {
      return await this.#fetch("POST", "/desk/visitors", { customer });
    } catch (error) {
      if (error.status !== 401) throw error;
      this.#identify = async () => null;
      return this.#fetch("POST", "/desk/visitors", {});
    }
  }

  async #fetch(method, path, body, { token, signal, headers: more } = {}) {
    const headers = { Accept: "application/json, text/event-stream", ...more };
    if (body) headers["Content-Type"] = "application/json";
    if (token) headers.Authorization = `Bearer ${token}`;
    if (this.#siteId) headers["X-Kefu-Site"] = this.#siteId;
    const options = { method, headers, signal, body: body && JSON.stringify(body), credentials: "omit", cache: "no-store" };
    const response = await fetch(path, options).catch(() => null);
    if (!response) throw new DeskError(navigator.onLine ? "unreachable" : "offline");
    if (response.ok) return response;
    const refusal = await response.json().catch(() => null);
    throw new DeskError(problemOf(response.status, refusal?.error?.code), response.status);
  }
}
