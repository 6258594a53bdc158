// Follows the newest line while the reader is at the bottom, and stays put while the reader is anywhere else.

const NEAR_PX = 24;

export class Scroller {
  #view;
  #jump;
  #follows = true;
  #lastTop = 0;

  constructor(view, content, jump) {
    this.#view = view;
    this.#jump = jump;
    view.addEventListener("scroll", () => this.#look(), { passive: true });
    jump.addEventListener("click", () => this.toLatest());
    const sizes = new ResizeObserver(() => this.#settle());
    sizes.observe(content);
    sizes.observe(view);
  }

  toLatest() {
    this.#follows = true;
    this.#settle();
  }

  get #below() {
    return this.#view.scrollHeight - this.#view.clientHeight - this.#view.scrollTop;
  }

  // Only the reader scrolls up: growing text moves the bottom away without moving scrollTop.
  #look() {
    if (this.#below <= NEAR_PX) this.#follows = true;
    else if (this.#view.scrollTop < this.#lastTop) this.#follows = false;
    this.#lastTop = this.#view.scrollTop;
    this.#jump.hidden = this.#follows;
  }

  #settle() {
    if (this.#follows) this.#view.scrollTop = this.#view.scrollHeight;
    this.#look();
  }
}
