// The page around the frame, over a port that only it could have sent: its window is our parent, its origin one of the site's.

const PATIENCE_MS = 3000;

export class Host {
  #port = null;
  #onOpen;
  #onCustomer = () => {};

  // `onOpen()` is called each time the customer opens the chat.
  constructor(onOpen) {
    this.#onOpen = onOpen;
    document.getElementById("close")?.addEventListener("click", () => this.tell("close"));
  }

  // -> does the page know its customer? Without a page around us, or with one that stays silent, nobody does.
  meet(origins) {
    if (parent === window) return false;
    const allowed = origins.length ? origins : [location.origin];
    return new Promise((resolve) => {
      setTimeout(resolve, PATIENCE_MS, false);
      const hear = ({ source, origin, data, ports }) => {
        if (source !== parent || !allowed.includes(origin) || data?.kefu !== "hello" || !ports[0]) return;
        removeEventListener("message", hear);
        [this.#port] = ports;
        this.#port.onmessage = (event) => this.#take(event.data);
        resolve(data.isKnown === true);
      };
      addEventListener("message", hear);
    });
  }

  // -> a fresh JWT for the customer, or null
  identify() {
    return new Promise((resolve) => {
      setTimeout(resolve, PATIENCE_MS, null);
      this.#onCustomer = resolve;
      this.tell("identify");
    });
  }

  tell(name) {
    this.#port?.postMessage({ name });
  }

  #take({ name, token }) {
    // Nothing takes the focus in a frame that is not drawn yet.
    if (name === "open") requestAnimationFrame(() => this.#onOpen());
    if (name === "customer") this.#onCustomer(token);
  }
}
