// Whether this conversation may help to improve the answers: off until the customer says so, and theirs to take back.

import { part } from "../helpers/dom.js";

export class Consent {
  #line;
  #switch;
  #conversationId = null;

  // `orNotice(step)` resolves to what the step gives, or to undefined after its problem was shown.
  constructor(line, desk, orNotice) {
    this.#line = line;
    this.#switch = part(line, "switch");
    desk.onConversation = (conversation) => this.#show(conversation);
    this.#switch.addEventListener("change", async () => {
      const [id, wanted] = [this.#conversationId, this.#switch.checked];
      const kept = await orNotice(desk.consent(id, wanted));
      if (!kept && id === this.#conversationId) this.#switch.checked = !wanted;
    });
  }

  // Asked again and again while an answer is awaited, the server may not know yet what was just switched.
  #show({ conversation_id: id, consent_train: consents = false }) {
    if (id === this.#conversationId) return;
    this.#conversationId = id;
    this.#switch.checked = consents;
    this.#line.hidden = false;
  }
}
