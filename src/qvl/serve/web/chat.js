// Questions and answers in turn: asks, follows the answer as it streams, stops, asks again. Knows the log on the page
// and the server; what is around them hears `onchange`.

import { AnswerView } from "./answer.js";
import { chat, model } from "./api.js";
import { Conversation } from "./conversation.js";
import { surfaces } from "./figure.js";
import { Follower } from "./follow.js";
import { questionView } from "./question.js";
import { announce } from "./status.js";
import { Clock } from "./stats.js";

export class Chat {
  conversation = new Conversation();
  #abort = null;
  #view = null;
  #model = null;

  /** `options`: a function that gives {system, request} as the settings stand. `onchange`: called after changes. */
  constructor(log, options, onchange) {
    this.log = log;
    this.options = options;
    this.onchange = onchange;
    this.follower = new Follower(log);
  }

  get busy() {
    return this.#abort !== null;
  }

  /** {id, length} of the model; asked again until the server has answered once. */
  model() {
    this.#model ??= model().catch((error) => {
      this.#model = null;
      throw error;
    });
    return this.#model;
  }

  async ask(text, media) {
    const turn = this.conversation.ask(text, media);
    this.log.append(questionView(this.conversation.turns.length, turn));
    await this.#answer(turn);
  }

  async again() {
    if (this.busy || !this.conversation.last) return;
    this.#view.node.remove();
    await this.#answer(this.conversation.last);
  }

  stop() {
    this.#abort?.abort();
  }

  clear() {
    this.stop();
    for (const medium of this.conversation.media) medium.release();
    this.conversation = new Conversation();
    this.log.replaceChildren();
    this.onchange();
  }

  async #answer(turn) {
    turn.answer = "";
    this.#view?.again.remove(); // only the last answer can be had again
    const { turns } = this.conversation;
    const show = (figure) => this.follower.show(figure);
    this.#view = new AnswerView(turns.length, surfaces(turns), show, () => this.again());
    this.log.append(this.#view.node);
    this.#abort = new AbortController();
    this.#begin();
    await this.#follow(turn, this.#view, this.#abort);
  }

  #begin() {
    this.log.setAttribute("aria-busy", "true"); // read out when whole, not word by word
    this.follower.toEnd();
    this.onchange();
  }

  async #follow(turn, view, abort) {
    const clock = new Clock();
    let end = {};
    try {
      end = await this.#stream(turn, view, clock, abort.signal);
      view.finish(end.reason, clock.facts(end.usage));
      announce("The answer is complete.");
    } catch (error) {
      failed(turn, view, clock, error);
    }
    if (this.#abort === abort) this.#end();
  }

  #end() {
    this.#abort = null;
    this.log.setAttribute("aria-busy", "false");
    this.onchange();
  }

  async #stream(turn, view, clock, signal) {
    const { system, request } = this.options();
    const messages = await this.conversation.messages(system);
    const { id } = await this.model();
    const end = { reason: null, usage: null };
    for await (const piece of chat({ model: id, messages, ...request }, signal)) {
      end.reason = piece.end ?? end.reason;
      end.usage = piece.usage ?? end.usage;
      if (piece.text) add(piece.text, turn, view, clock);
    }
    if (end.reason === null) throw new Error("The connection ended before the answer did.");
    return end;
  }
}

function add(text, turn, view, clock) {
  clock.tick();
  turn.answer += text;
  view.show(turn.answer);
}

function failed(turn, view, clock, error) {
  if (error.name === "AbortError") {
    view.stop(Boolean(turn.answer), clock.facts(null));
    announce("Stopped.");
  } else {
    turn.answer = "";
    view.fail(error.message);
  }
}
