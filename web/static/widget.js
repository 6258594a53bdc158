// The widget: a button on the host page and, in a frame of its own origin, the chat page. What the frame knows stays in it: the host
// page hears that an answer came, that the chat wants to close, and that it asks who the customer is. Nothing listens to window messages
// here: a frame of our origin is handed one end of a channel, and all else goes over that.
(() => {
  const WORDS = {};
  const script = document.currentScript;
  const ORIGIN = new URL(script.src).origin;
  const NARROW = matchMedia("(max-width: 30rem), (max-height: 30rem)");
  const SANDBOX = "allow-scripts allow-same-origin allow-forms allow-popups allow-popups-to-escape-sandbox";
  const ICONS = { speech: "M4 5.5h16v11H10L5.5 20v-3.5H4z", cross: "m6.5 6.5 11 11m0-11-11 11" };

  const sheet = new CSSStyleSheet();
  sheet.replaceSync(`
    :host {
      all: initial; color-scheme: light dark; position: fixed; z-index: var(--kefu-layer, 2147483000);
      bottom: calc(var(--kefu-bottom, 20px) + env(safe-area-inset-bottom)); right: var(--kefu-side, 20px);
      font: 14px/1.5 system-ui, sans-serif; --ground: #fcfcfa; --ink: rgb(98 95 88); --line: #dcdbd4; --shadow: rgb(20 20 18 / 16%); --news: rgb(156 53 36);
    }
    :host([position="start"]) { right: auto; left: var(--kefu-side, 20px); }
    [hidden] { display: none !important; }
    button {
      display: grid; place-content: center; position: relative; width: 52px; height: 52px; margin: 0 0 0 auto; padding: 0; border: 0;
      border-radius: 50%; color: var(--on-accent, #fff); background: var(--accent, rgb(28 107 87)); box-shadow: 0 2px 10px var(--shadow); cursor: pointer;
    }
    :host([position="start"]) button { margin-left: 0; }
    button:focus-visible { outline: 2px solid var(--accent, rgb(28 107 87)); outline-offset: 3px; }
    svg { width: 24px; height: 24px; fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linecap: round; stroke-linejoin: round; }
    #badge {
      position: absolute; top: -4px; right: -4px; min-width: 20px; box-sizing: border-box; padding: 0 5px; font: 600 12px/20px system-ui, sans-serif;
      text-align: center; color: var(--ground); background: var(--news); border-radius: 10px;
    }
    #said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
    #panel {
      display: grid; place-items: center; box-sizing: border-box; width: min(400px, 100vw - 40px); height: min(660px, 100dvh - 116px);
      margin-bottom: 12px; overflow: hidden; color: var(--ink); background: var(--ground); border: 1px solid var(--line); border-radius: 16px;
      box-shadow: 0 8px 32px var(--shadow); animation: rise 140ms ease-out;
    }
    #panel > * { grid-area: 1 / 1; }
    p { margin: 24px; text-align: center; }
    iframe { width: 100%; height: 100%; border: 0; }
    @keyframes rise { from { translate: 0 8px; opacity: 0; } }
    @media ${NARROW.media} {
      #panel { position: fixed; inset: var(--top, 0) 0 auto; width: 100vw; height: var(--height, 100dvh); margin: 0; border: 0; border-radius: 0; }
      #panel:not([hidden]) ~ button { display: none; }
    }
    @media (prefers-color-scheme: dark) {
      :host { --ground: rgb(24 25 23); --ink: rgb(169 167 159); --line: rgb(55 56 52); --shadow: rgb(0 0 0 / 45%); --news: rgb(235 154 135); }
    }
    @media (prefers-reduced-motion: reduce) { #panel { animation: none; } }
    @media print { :host { display: none; } }
  `);

  const element = (name, id, attributes = {}) => {
    const node = document.createElement(name);
    if (id) node.id = id;
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };

  const icon = (path) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 24 24");
    svg.setAttribute("aria-hidden", "true");
    svg.append(document.createElementNS(svg.namespaceURI, "path"));
    svg.firstChild.setAttribute("d", path);
    return svg;
  };

  class KefuChat extends HTMLElement {
    #root = this.attachShadow({ mode: "closed" });
    #panel;
    #button;
    #badge;
    #said;
    #frame = null;
    #port = null;
    #words;
    #customer = null;
    #numUnread = 0;

    connectedCallback() {
      if (this.#button) return;
      const language = this.#language;
      this.#words = WORDS[language.slice(0, 2).toLowerCase()] ?? WORDS.en;
      this.#root.adoptedStyleSheets = [sheet];
      this.#panel = element("div", "panel", { role: "dialog", "aria-label": this.#words.widget_title, hidden: "" });
      this.#panel.append(element("p"));
      this.#panel.firstChild.textContent = this.#words.widget_wait;
      this.#button = element("button", "", { type: "button", "aria-haspopup": "dialog" });
      this.#badge = element("span", "badge", { "aria-hidden": "true", hidden: "" });
      this.#said = element("span", "said", { role: "status" });
      const theme = element("link", "", { rel: "stylesheet", href: `${ORIGIN}/embed/${encodeURIComponent(this.#site)}.css` });
      this.#root.append(theme, this.#panel, this.#button, this.#said);
      this.#button.addEventListener("click", () => (this.isOpen ? this.close() : this.open()));
      this.#root.addEventListener("keydown", (event) => event.key === "Escape" && this.isOpen && this.close());
      for (const kind of ["resize", "scroll"]) visualViewport.addEventListener(kind, () => this.#fit());
      this.#takeCustomer();
      this.#show();
      this.#resume();
    }

    get isOpen() {
      return !this.#panel.hidden;
    }

    get customer() {
      return this.#customer;
    }

    // A function that resolves to a fresh JWT from the host page's server: each is good for one use. null: nobody is logged in any more.
    set customer(customer) {
      this.#customer = customer;
      if (!this.#frame) return;
      this.#frame.remove();
      this.#frame = null;
      this.#load();
    }

    open() {
      this.#reveal();
      // A frame that was hidden takes the focus for certain only once it has been drawn again.
      requestAnimationFrame(() => this.isOpen && this.#frame.focus());
      this.#tell("open");
    }

    close() {
      this.#panel.hidden = true;
      this.#remember("closed");
      this.#show();
      this.#button.focus();
    }

    get #site() {
      return this.getAttribute("site") ?? "";
    }

    get #language() {
      return this.closest("[lang]")?.lang || navigator.language;
    }

    // Set before this script had run, `customer` is a property of the element and hides the accessor.
    #takeCustomer() {
      if (!Object.hasOwn(this, "customer")) return;
      this.#customer = this.customer;
      delete this.customer;
    }

    // On the next page of a visit the conversation goes on; a phone, where it would cover that page, only counts what is new.
    #resume() {
      const before = this.#remembered;
      if (before === "open" && !NARROW.matches) this.#reveal();
      else if (before) this.#load();
    }

    #reveal() {
      this.#panel.hidden = false;
      this.#numUnread = 0;
      this.#remember("open");
      this.#load();
      this.#fit();
      this.#show();
    }

    #load() {
      if (this.#frame) return;
      const wanted = new URLSearchParams({ site: this.#site, lang: this.#language.slice(0, 2) });
      const frame = element("iframe", "", { allow: "", referrerpolicy: "no-referrer", title: this.#words.widget_title });
      // A page of our own origin could lift it, so there it would hold nothing.
      if (ORIGIN !== location.origin) frame.setAttribute("sandbox", SANDBOX);
      frame.src = `${ORIGIN}/embed?${wanted}`;
      frame.addEventListener("load", () => this.#greet(frame));
      this.#frame = frame;
      this.#panel.append(frame);
    }

    #greet(frame) {
      const { port1, port2 } = new MessageChannel();
      this.#port = port1;
      port1.onmessage = ({ data }) => this.#hear(data, port1);
      frame.contentWindow.postMessage({ kefu: "hello", isKnown: Boolean(this.#customer) }, ORIGIN, [port2]);
      if (this.#root.activeElement === frame) this.#tell("open");
    }

    #hear({ name }, port) {
      if (name === "close" && this.isOpen) this.close();
      if (name === "answered" && !this.isOpen) this.#count();
      if (name === "identify") this.#identify(port);
    }

    async #identify(port) {
      let token = null;
      try {
        token = await this.#customer?.();
      } catch (error) {
        console.warn("kefu-chat: customer() failed", error);
      }
      port.postMessage({ name: "customer", token: typeof token === "string" ? token : null });
    }

    #tell(name) {
      this.#port?.postMessage({ name });
    }

    // Inside a closed panel nothing is read aloud, so the page says it.
    #count() {
      this.#numUnread += 1;
      this.#show();
      this.#said.textContent = this.#button.ariaLabel;
    }

    #show() {
      const { widget_open: open, widget_close: close, widget_new: news } = this.#words;
      this.#button.replaceChildren(icon(this.isOpen ? ICONS.cross : ICONS.speech), this.#badge);
      this.#button.ariaExpanded = String(this.isOpen);
      this.#button.ariaLabel = this.isOpen ? close : this.#numUnread ? news.replace("{count}", this.#numUnread) : open;
      this.#badge.hidden = !this.#numUnread;
      this.#badge.textContent = Math.min(this.#numUnread, 99);
      if (!this.#numUnread) this.#said.textContent = "";
    }

    // A phone's keyboard takes its room from the visual viewport only.
    #fit() {
      this.#panel.style.setProperty("--height", `${visualViewport.height}px`);
      this.#panel.style.setProperty("--top", `${visualViewport.offsetTop}px`);
    }

    get #remembered() {
      try {
        return sessionStorage.getItem(`kefu-chat.${this.#site}`);
      } catch {
        return null;
      }
    }

    #remember(state) {
      try {
        sessionStorage.setItem(`kefu-chat.${this.#site}`, state);
      } catch {
        // Storage is forbidden on this page: the next one begins with a closed chat.
      }
    }
  }

  if (!customElements.get("kefu-chat")) customElements.define("kefu-chat", KefuChat);
  if (script.dataset.site === undefined) return;
  const { site, position = "end", lang = "" } = script.dataset;
  const chat = element("kefu-chat", "", { site, position, ...(lang && { lang }) });
  if (document.body) document.body.append(chat);
  else addEventListener("DOMContentLoaded", () => document.body.append(chat), { once: true });
})();
