// The server, as the page sees it: three routes, and every failure as one plain sentence. Knows no document.

import { events } from "./sse.js";

// Not a path from the root, so that a proxy may put the page under a prefix; and built from the origin, because
// fetch refuses addresses with a password in them, which is how a page may have been opened.
const BASE = location.origin + location.pathname.replace(/[^/]*$/, "");

const SENTENCES = {
  401: "This server asks for a key: reload the page and give it as the password.",
  413: "That is more than this server takes in one request.",
  429: "The server is busy. Try again in a moment.",
  503: "The server is about to stop and takes no new questions.",
};

/** Something that the server, or the way to it, refused. The message is for people. */
class ServerError extends Error {}

/** What the server calls its model, and its longest prompt in tokens (undefined: it does not say). */
export async function model() {
  const answer = await (await send("v1/models")).json();
  const [first] = answer.data ?? [];
  if (!first) throw new ServerError("The server has no model.");
  return { id: first.id, length: first.max_model_len };
}

/** {count, media}: the tokens of a conversation, and what each picture, frame or page in it costs. */
export async function tokenize(request, signal) {
  return (await send("tokenize", { ...request, return_tokens: false }, signal)).json();
}

/** The pieces of an answer as they come. `complete` on the last: the server said that it was one. */
export async function* chat(request, signal) {
  const options = { stream: true, stream_options: { include_usage: true } };
  const response = await send("v1/chat/completions", { ...request, ...options }, signal);
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(plain(chunk.error));
      yield piece(chunk);
    }
  } catch (error) {
    throw asServerError(error);
  }
}

function piece(chunk) {
  const choice = chunk.choices?.[0];
  return { text: choice?.delta?.content ?? "", end: choice?.finish_reason ?? null, usage: chunk.usage ?? null };
}

async function send(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const post = body && { method: "POST", headers, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(BASE + path, { ...post, signal });
  } catch (error) {
    throw asServerError(error);
  }
  if (!response.ok) throw new ServerError(await sentence(response));
  return response;
}

/** What the server said was wrong, or what its status means. */
async function sentence(response) {
  try {
    const { error } = await response.json();
    if (error.message) return plain(error);
  } catch {
    // no JSON of ours: something between the page and the server answered
  }
  return SENTENCES[response.status] ?? `The server answered with status ${response.status}.`;
}

/** An error of the API as a sentence: without the place in the request, which means nothing to a person. */
function plain({ message, param }) {
  const place = param?.startsWith("messages") ? `${param}: ` : "";
  const text = message.startsWith(place) ? message.slice(place.length) : message;
  return `${text[0].toUpperCase()}${text.slice(1)}${/[.!?…]$/.test(text) ? "" : "."}`;
}

function asServerError(error) {
  if (error instanceof ServerError || error.name === "AbortError") return error;
  return new ServerError("The server cannot be reached, or the connection broke.");
}
