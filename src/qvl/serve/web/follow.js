// Keeps what matters in view while the conversation grows, for a person who was looking at its end: its end, or the
// picture that an answer points at. Whoever scrolled away to read is left alone.

const NEAR = 80; // pixels from the end that still count as being there

export class Follower {
  #atEnd = true;
  #shown = null; // held at the top of the view instead of the end

  constructor(log) {
    this.root = document.documentElement;
    addEventListener("scroll", () => (this.#atEnd = this.#distance() < NEAR), { passive: true });
    for (const name of ["wheel", "touchmove"]) addEventListener(name, () => (this.#shown = null), { passive: true });
    new ResizeObserver(() => this.#follow()).observe(log);
  }

  toEnd() {
    this.#shown = null;
    this.#atEnd = true;
    this.root.scrollTop = this.root.scrollHeight;
  }

  /** From now on `node` is what matters. */
  show(node) {
    if (!this.#atEnd) return;
    this.#shown = node;
    this.#follow();
  }

  #follow() {
    if (this.#shown) this.#shown.scrollIntoView({ block: "start" });
    else if (this.#atEnd) this.toEnd();
  }

  #distance() {
    return this.root.scrollHeight - this.root.scrollTop - this.root.clientHeight;
  }
}
