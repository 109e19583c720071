// The page: conversations at the side, one of them in the middle, its settings beside it.
import { apiKey, checkKey, fetchModels, setApiKey } from "./api.js";
import { Run } from "./chat.js";
import { announce, h, iconButton } from "./dom.js";
import { SettingError, SettingsForm, lastSettings } from "./settings.js";
import { Store } from "./store.js";
import { hideTip } from "./tokens.js";
import { MessageView } from "./view.js";

const $ = (id) => document.getElementById(id);
const MODEL = "llama_cffi.model";
const THEME = "llama_cffi.theme";
const THEMES = ["auto", "light", "dark"];
const NEAR = 80; // pixels from the end at which the view follows the answer

const store = new Store();
const runs = new Map(); // by the conversation's id
const form = new SettingsForm($("settings"), (settings) => {
  chat.settings = settings;
  store.save(chat);
});
let chat; // the conversation that is shown
let views = [];
let models = [];

// Conversations.

function show(next) {
  chat = next;
  showAddress();
  form.show(chat.settings);
  views = [];
  $("messages").replaceChildren();
  refresh();
  scrollToEnd();
  closeDrawers();
}

/** Keep the conversation in the address, for reloads and bookmarks. */
function showAddress() {
  history.replaceState(null, "", chat.messages.length ? `#${chat.id}` : location.pathname);
}

function newChat() {
  show(store.create(lastSettings()));
  $("prompt").focus();
}

/** Bring the page up to date with the conversation. */
function refresh() {
  const { messages } = chat;
  let kept = 0;
  while (kept < views.length && views[kept].message === messages[kept]) kept++;
  for (const view of views.splice(kept)) view.element.remove();
  for (const view of views) view.update();
  for (const message of messages.slice(kept)) {
    const view = new MessageView(message, actions(message));
    views.push(view);
    $("messages").append(view.element);
  }
  const isRunning = runs.has(chat.id);
  $("welcome").hidden = messages.length > 0;
  $("composer").classList.toggle("running", isRunning);
  $("send").hidden = isRunning;
  $("stop").hidden = !isRunning;
  document.title = chat.title ? `${chat.title} – llama_cffi` : "llama_cffi";
  showContext();
  showList();
}

function showList() {
  $("chats").replaceChildren(
    ...store.list().map((item) => {
      const isCurrent = item === chat;
      return h(
        "li",
        { class: isCurrent && "current" },
        h(
          "button",
          { type: "button", class: "chat-name", "aria-current": isCurrent && "page", title: item.title, onclick: () => show(item) },
          item.title || "Untitled",
        ),
        iconButton("edit", `Rename ${item.title}`, () => rename(item)),
        iconButton("delete", `Delete ${item.title}`, () => remove(item)),
      );
    }),
  );
}

async function rename(item) {
  $("rename-field").value = item.title;
  if (!(await ask($("rename-dialog")))) return;
  item.title = $("rename-field").value.trim() || item.title;
  save(item);
  refresh();
}

async function remove(item) {
  $("delete-name").textContent = item.title;
  if (!(await ask($("delete-dialog")))) return;
  runs.get(item.id)?.stop();
  store.remove(item.id);
  if (item === chat) newChat();
  else refresh();
}

function save(item) {
  item.updated = Date.now();
  if (!store.save(item)) notice("The browser's storage is full: this conversation will be lost. Delete others.");
}

/** Show a dialog; return whether it was confirmed. */
function ask(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"), { once: true });
  });
}

// Messages.

function actions(message) {
  const owner = chat;
  const index = () => owner.messages.indexOf(message);
  return {
    get asksResults() {
      return owner.messages.at(-1) === message && !message.running && message.finish === "tool_calls";
    },
    edit(text) {
      message.content = text;
      delete message.tokens;
      if (message.role !== "user") {
        save(owner);
        refresh();
        return;
      }
      // As when it is sent: what follows was an answer to another text.
      cut(owner, index() + 1);
      answer(owner);
    },
    regenerate() {
      cut(owner, index());
      answer(owner);
    },
    resume() {
      cut(owner, index() + 1);
      answer(owner, message);
    },
    sendResults(texts) {
      message.calls.forEach((call, i) => {
        owner.messages.push({ role: "tool", callId: call.id, content: texts[i] });
      });
      answer(owner);
    },
  };
}

function cut(owner, end) {
  runs.get(owner.id)?.stop();
  runs.delete(owner.id);
  owner.messages.splice(end);
}

function sendPrompt() {
  const field = $("prompt");
  const text = field.value.trim();
  if (!text || runs.has(chat.id)) return;
  chat.messages.push({ role: "user", content: text });
  chat.title ||= text.replace(/\s+/g, " ").slice(0, 60);
  if (!answer(chat)) {
    chat.messages.pop();
    if (!chat.messages.length) chat.title = "";
    refresh();
    return;
  }
  field.value = "";
  fit(field);
  showAddress();
}

/** Let the model answer, or continue `message`; return whether the settings allow it. */
function answer(owner, message = { role: "assistant", content: "" }) {
  const isNew = !owner.messages.includes(message);
  if (isNew) owner.messages.push(message);
  let run;
  try {
    run = new Run(owner, $("model").value, message);
  } catch (error) {
    if (!(error instanceof SettingError)) throw error;
    if (isNew) owner.messages.pop();
    openDrawer("panel");
    form.showError(error);
    return false;
  }
  runs.set(owner.id, run);
  save(owner);
  receive(run);
  refresh();
  scrollToEnd();
  announce("The model is answering");
  return true;
}

async function receive(run) {
  const { chat: owner, message } = run;
  let isDue = false;
  await run.receive(() => {
    if (isDue || owner !== chat) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      const follows = isNearEnd();
      views.find((view) => view.message === message)?.update();
      if (follows) scrollToEnd();
    });
  });
  if (runs.get(owner.id) === run) runs.delete(owner.id);
  if (owner.messages.includes(message)) save(owner);
  if (owner === chat) {
    const follows = isNearEnd();
    refresh();
    if (follows) scrollToEnd();
    if (!message.error) announce(message.content || "The answer has ended");
  } else {
    showList();
  }
  if (message.status === 401) askKey(message.error);
}

// The API key.

async function askKey(message) {
  if ($("key-dialog").open) return;
  $("key-message").textContent = message;
  $("key-field").value = apiKey();
  if (!(await ask($("key-dialog")))) return;
  setApiKey($("key-field").value.trim(), $("key-keep").checked);
  connect();
}

async function connect() {
  try {
    models = await fetchModels();
    showModels();
    await checkKey($("model").value);
    notice("");
  } catch (error) {
    if (error.status === 401) askKey(error.message);
    // /props is optional: a server behind a proxy may lack it.
    else if (!models.length) notice(error.message);
  }
}

function showModels() {
  const wanted = $("model").value || localStorage.getItem(MODEL);
  $("model").replaceChildren(...models.map((model) => h("option", { value: model.id }, model.id)));
  if (models.some((model) => model.id === wanted)) $("model").value = wanted;
  showContext();
}

function showContext() {
  const size = models.find((model) => model.id === $("model").value)?.meta?.n_ctx;
  const used = chat.messages.findLast((message) => message.stats?.total)?.stats.total;
  const share = used && size ? Math.min(1, used / size) : 0;
  $("context").textContent = size ? `${(used ?? 0).toLocaleString("en")} of ${size.toLocaleString("en")} tokens` : "";
  $("meter").hidden = !size;
  $("meter").value = share;
}

function notice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text;
}

// The window.

function isNearEnd() {
  const { scrollHeight, scrollTop, clientHeight } = $("scroller");
  return scrollHeight - scrollTop - clientHeight < NEAR;
}

function scrollToEnd() {
  $("scroller").scrollTop = $("scroller").scrollHeight;
}

function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

const drawers = { side: $("open-side"), panel: $("open-panel") };

function openDrawer(name) {
  document.body.classList.add(`with-${name}`);
  drawers[name].setAttribute("aria-expanded", "true");
}

function closeDrawer(name) {
  document.body.classList.remove(`with-${name}`);
  drawers[name].setAttribute("aria-expanded", "false");
}

/** Close what lies over the conversation in a narrow window. */
function closeDrawers() {
  if (matchMedia("(max-width: 900px)").matches) closeDrawer("side");
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const label = `Theme: ${theme}`;
  $("theme").setAttribute("aria-label", label);
  $("theme").title = label;
}

for (const [name, button] of Object.entries(drawers)) {
  button.addEventListener("click", () => {
    if (document.body.classList.contains(`with-${name}`)) closeDrawer(name);
    else openDrawer(name);
  });
}
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => {
    closeDrawer(button.dataset.close);
    drawers[button.dataset.close].focus();
  });
}
for (const button of document.querySelectorAll("[data-cancel]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
$("shade").addEventListener("click", () => Object.keys(drawers).forEach(closeDrawer));
$("new").addEventListener("click", newChat);
$("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  localStorage.setItem(THEME, next);
  setTheme(next);
});
$("key").addEventListener("click", () => askKey("The key that the server was started with."));
$("model").addEventListener("change", () => {
  localStorage.setItem(MODEL, $("model").value);
  showContext();
});
$("stop").addEventListener("click", () => {
  runs.get(chat.id)?.stop();
  $("prompt").focus();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  sendPrompt();
});
$("prompt").addEventListener("input", () => fit($("prompt")));
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    sendPrompt();
  }
});
$("scroller").addEventListener("scroll", hideTip, { passive: true });
for (const button of document.querySelectorAll("[data-prompt]")) {
  button.addEventListener("click", () => {
    $("prompt").value = button.dataset.prompt;
    sendPrompt();
  });
}
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (runs.has(chat.id)) runs.get(chat.id).stop();
  else Object.keys(drawers).forEach((name) => matchMedia("(max-width: 900px)").matches && closeDrawer(name));
});
addEventListener("pagehide", () => {
  for (const run of runs.values()) save(run.chat);
});
store.onChange(() => {
  const current = store.chats.get(chat.id);
  if (current && current !== chat && !runs.has(chat.id)) show(current);
  else if (!current && !runs.has(chat.id)) newChat();
  else showList();
});

setTheme(localStorage.getItem(THEME) ?? "auto");
if (matchMedia("(min-width: 901px)").matches) openDrawer("side");
show(store.chats.get(location.hash.slice(1)) ?? store.create(lastSettings()));
connect();
