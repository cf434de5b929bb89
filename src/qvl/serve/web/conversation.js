// What was asked and answered, as the API wants to hear it. Knows neither the network nor the document.

export class Conversation {
  turns = [];

  ask(text, media) {
    const turn = { text, media, answer: "" };
    this.turns.push(turn);
    return turn;
  }

  get last() {
    return this.turns.at(-1);
  }

  /** All media so far, in order. */
  get media() {
    return this.turns.flatMap((turn) => turn.media);
  }

  /** The messages up to the question of the last turn. Turns that got no answer are left out. */
  async messages(system) {
    const said = this.turns.filter((turn) => turn.answer || turn === this.last);
    const pairs = await Promise.all(said.map(async (turn) => [await question(turn), turn.answer]));
    const list = pairs.flatMap(([content, answer]) => [user(content), assistant(answer)]);
    return [...opening(system), ...list.slice(0, -1)];
  }

  /** The messages that would be sent with `text` as the next question, without any media. */
  textMessages(system, text) {
    const said = this.turns.filter((turn) => turn.answer);
    return [...opening(system), ...said.flatMap((turn) => [user(turn.text), assistant(turn.answer)]), user(text)];
  }
}

const opening = (system) => (system ? [{ role: "system", content: system }] : []);
const user = (content) => ({ role: "user", content });
const assistant = (content) => ({ role: "assistant", content });

async function question({ text, media }) {
  if (!media.length) return text;
  const parts = await Promise.all(media.map((medium) => medium.part()));
  return text ? [...parts, { type: "text", text }] : parts;
}
