// Server-sent events out of a byte stream: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

export class SseParser {
  #decoder = new TextDecoder("utf-8");
  #rest = "";
  #sawCr = false;
  #name = "";
  #data = [];

  // Takes the next bytes, cut anywhere; returns the events they complete as {name, data}.
  feed(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (!text) return [];
    // A CR ends its line at once; the LF of a CRLF cut in two is then nothing.
    if (this.#sawCr && text.startsWith("\n")) text = text.slice(1);
    this.#sawCr = text.endsWith("\r") || (this.#sawCr && !text);
    const lines = (this.#rest + text).split(/\r\n|\r|\n/);
    this.#rest = lines.pop();
    return lines.map((line) => this.#take(line)).filter(Boolean);
  }

  #take(line) {
    if (line === "") return this.#dispatch();
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "event") this.#name = value;
    if (field === "data") this.#data.push(value);
    return null;
  }

  #dispatch() {
    const event = this.#data.length ? { name: this.#name || "message", data: this.#data.join("\n") } : null;
    this.#name = "";
    this.#data = [];
    return event;
  }
}

// The events of a fetch response, as they arrive; `onBytes` hears of every chunk, comments included.
export async function* events(response, onBytes = () => {}) {
  const parser = new SseParser();
  const reader = response.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onBytes();
      yield* parser.feed(value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
