// How long an answer took, and numbers as people read them.

const WHOLE = new Intl.NumberFormat("en");

export const whole = (number) => WHOLE.format(number);
export const count = (number, thing) => `${whole(number)} ${thing}${number === 1 ? "" : "s"}`;
const seconds = (value) => (value < 10 ? `${value.toFixed(2)} s` : `${value.toFixed(0)} s`);

const SHORT = 0.1; // seconds from the first token to the last, below which they came together

/** The clock of one answer: started when it is asked, told of every piece of text. */
export class Clock {
  #start = performance.now();
  #first = 0;
  #last = 0;

  tick() {
    this.#last = performance.now();
    this.#first ||= this.#last;
  }

  /** The facts to show, as {text, title}. `usage`: the server's own count, or null where it did not get to it. */
  facts(usage) {
    const facts = usage ? this.#written(usage.completion_tokens) : [];
    if (this.#first) {
      const text = `first after ${seconds((this.#first - this.#start) / 1000)}`;
      facts.push({ text, title: "From sending the question to the first text of the answer" });
    }
    return usage ? [...facts, read(usage)] : facts;
  }

  #written(tokens) {
    const facts = [{ text: count(tokens, "token"), title: "Tokens of the answer" }];
    const writing = (this.#last - this.#first) / 1000;
    const all = (this.#last - this.#start) / 1000;
    if (writing > SHORT) facts.push(speed((tokens - 1) / writing, "After the first token"));
    else if (this.#first) facts.push(speed(tokens / all, "From sending the question to the end"));
    return facts;
  }
}

function speed(rate, title) {
  return { text: `${rate.toFixed(rate < 100 ? 1 : 0)} tokens/s`, title };
}

function read({ prompt_tokens: tokens, prompt_tokens_details: details }) {
  const kept = details?.cached_tokens;
  const note = kept ? ` (${whole(kept)} kept)` : "";
  const title = `Tokens of the conversation and its pictures${kept ? "; those kept were not computed again" : ""}`;
  return { text: `${count(tokens, "token")} read${note}`, title };
}
