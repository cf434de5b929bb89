// Puts the parts of the page together: what is chosen or written goes to the chat, what changes there shows here.

import { wireCamera } from "./camera.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { CostLine } from "./cost.js";
import { byId } from "./dom.js";
import { placeIcons } from "./icons.js";
import { wireIntake } from "./intake.js";
import { Settings } from "./settings.js";
import { notice } from "./status.js";
import { Tray } from "./tray.js";

placeIcons();
const settings = new Settings(onSettings);
const chat = new Chat(byId("log"), () => ({ system: settings.system, request: settings.request }), onChat);
const tray = new Tray(byId("tray"), () => settings.detail, refresh);
const composer = new Composer(send, refresh);
const cost = new CostLine(byId("cost"), next);

wireIntake(take);
wireCamera(take);
byId("stop").addEventListener("click", () => chat.stop());
byId("new-chat").addEventListener("click", restart);
for (const button of document.querySelectorAll("[data-ask]")) button.addEventListener("click", () => suggest(button));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && chat.busy && !document.querySelector("dialog[open]")) chat.stop();
});
showModel();
onChat();

function send() {
  if (chat.busy || empty()) return;
  const text = composer.text;
  composer.text = "";
  notice();
  chat.ask(text, tray.take());
  composer.focus();
}

async function take(files) {
  await tray.add(files);
  composer.focus();
}

function suggest(button) {
  composer.text = button.dataset.ask;
  composer.focus();
  refresh();
}

function restart() {
  chat.clear();
  tray.clear();
  notice();
  composer.text = "";
  composer.focus();
  refresh();
}

function onSettings() {
  tray.recount();
  refresh();
}

function onChat() {
  const begun = chat.conversation.turns.length > 0;
  byId("welcome").hidden = begun;
  byId("send").hidden = chat.busy;
  byId("stop").hidden = !chat.busy;
  document.body.classList.toggle("begun", begun);
  if (document.activeElement === document.body && begun) composer.focus(); // what had the focus is gone
  refresh();
}

function refresh() {
  byId("send").disabled = empty();
  document.body.classList.toggle("holding", tray.media.length > 0);
  cost.refresh(empty());
}

function empty() {
  return !composer.text && !tray.media.length;
}

/** The conversation as it would be asked next, for its cost. */
async function next() {
  const { conversation } = chat;
  const messages = conversation.textMessages(settings.system, composer.text);
  const kept = conversation.turns.filter((turn) => turn.answer).flatMap((turn) => turn.media);
  const { length } = await chat.model();
  return { messages, media: [...kept, ...tray.media], length };
}

async function showModel() {
  try {
    const { id } = await chat.model();
    byId("model").textContent = id;
    document.title = `${id} · qvl`;
  } catch (error) {
    byId("model").textContent = "no model";
    notice(error.message);
  }
}
