// A message on the page.
import { copyButton, h, iconButton } from "./dom.js";
import { codeBlock, jsonBlock, showMarkdown } from "./markdown.js";
import { hideTip, tokenView } from "./tokens.js";

const NAMES = { user: "You", assistant: "Assistant", tool: "Tool result" };

/**
 * A message as an element.
 *
 * `actions` has what its buttons do: edit(text), regenerate(), resume(), sendResults(texts).
 */
export class MessageView {
  #parts = {};
  #showsTokens = false;
  #isEdited = false;

  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    const parts = this.#parts;
    parts.reasoning = h(
      "details",
      { class: "reasoning", hidden: true },
      h("summary", {}),
      h("div", { class: "markdown" }),
    );
    parts.content = h("div", { class: "content markdown" });
    parts.calls = h("div", { class: "calls" });
    parts.error = h("div", { class: "error", role: "alert", hidden: true });
    parts.foot = h("footer", {});
    this.element = h(
      "article",
      { class: `message ${message.role}` },
      h("h2", { class: "visually-hidden" }, NAMES[message.role] ?? message.role),
      ...Object.values(parts),
    );
    this.update();
  }

  /** Show what has changed. */
  update() {
    if (this.#isEdited) return;
    const { message } = this;
    const { content, error } = this.#parts;
    this.element.classList.toggle("running", Boolean(message.running));
    this.element.setAttribute("aria-busy", String(Boolean(message.running)));
    this.#updateReasoning();
    if (this.#showsTokens) content.replaceChildren(tokenView(message.tokens ?? []));
    else this.#showContent(content);
    this.#updateCalls();
    error.hidden = !message.error;
    error.textContent = message.error ?? "";
    this.#updateFoot();
  }

  #showContent(container) {
    const { content, role, running } = this.message;
    container.hidden = !content && !running;
    if (role === "user") {
      container.replaceChildren(content);
      return;
    }
    const json = running || !/^\s*[[{]/.test(content) ? null : jsonBlock(content);
    if (json) container.replaceChildren(json);
    else if (role === "tool") container.replaceChildren(codeBlock(content, "result"));
    else showMarkdown(container, content);
  }

  #updateReasoning() {
    const { reasoning } = this.#parts;
    const { message } = this;
    reasoning.hidden = !message.reasoning;
    if (!message.reasoning) return;
    const isOver = !message.running || message.content || message.calls?.length;
    const seconds = message.stats?.reasoningSeconds;
    const time = isOver && seconds ? ` · ${seconds.toFixed(1)} s` : isOver ? "" : " …";
    reasoning.firstChild.textContent = `Reasoning${time}`;
    showMarkdown(reasoning.lastChild, message.reasoning);
  }

  #updateCalls() {
    const { calls } = this.#parts;
    const given = this.message.calls ?? [];
    calls.hidden = !given.length;
    if (calls.dataset.shown === String(this.actions.asksResults) && !this.message.running) return;
    calls.dataset.shown = this.message.running ? "" : String(this.actions.asksResults);
    const fields = [];
    calls.replaceChildren(
      ...given.map((call, i) => {
        const field = h("textarea", { rows: "2", id: `result-${call.id || i}`, placeholder: "What the tool returned" });
        fields.push(field);
        return h(
          "section",
          { class: "call", "aria-label": `Call of ${call.name}` },
          h("h3", {}, "Tool call ", h("code", {}, call.name)),
          jsonBlock(call.arguments) ?? codeBlock(call.arguments, "arguments"),
          this.actions.asksResults && [h("label", { for: field.id }, "Result"), field],
        );
      }),
    );
    if (this.actions.asksResults && given.length) {
      const send = () => this.actions.sendResults(fields.map((field) => field.value));
      calls.append(h("button", { type: "button", class: "primary", onclick: send }, given.length > 1 ? "Send results" : "Send result"));
    }
  }

  #updateFoot() {
    const { foot } = this.#parts;
    const { message } = this;
    const key = JSON.stringify([message.running, message.finish, this.#showsTokens, message.stats?.tokens]);
    if (foot.dataset.key === key) return;
    foot.dataset.key = key;
    if (message.role === "tool") return;
    const isAnswer = message.role === "assistant";
    const buttons = message.running
      ? []
      : [
          message.content && copyButton("Copy message", () => message.content),
          message.content && iconButton("edit", "Edit message", () => this.#edit()),
          isAnswer && iconButton("retry", "Regenerate answer", () => this.actions.regenerate()),
          message.tokens?.length &&
            iconButton("tokens", "Token probabilities", () => this.#toggleTokens(), {
              "aria-pressed": String(this.#showsTokens),
            }),
        ];
    const canResume = !message.running && ["length", "stopped"].includes(message.finish) && message.content;
    foot.replaceChildren(
      h("div", { class: "actions" }, buttons.filter(Boolean)),
      canResume ? h("button", { type: "button", class: "quiet", onclick: () => this.actions.resume() }, "Continue") : "",
      h("span", { class: "stats" }, statistics(message)),
    );
  }

  #toggleTokens() {
    this.#showsTokens = !this.#showsTokens;
    hideTip();
    this.#parts.content.replaceChildren();
    this.update();
    this.#parts.foot.querySelector("[aria-pressed]").focus();
  }

  #edit() {
    this.#isEdited = true;
    const { content, foot } = this.#parts;
    const { message } = this;
    const field = h("textarea", { "aria-label": "Text of the message", rows: "3" });
    field.value = message.content;
    const close = () => {
      this.#isEdited = false;
      this.#showsTokens = false;
      foot.dataset.key = "";
      content.replaceChildren();
      this.update();
      foot.querySelector("button")?.focus();
    };
    const save = () => {
      close();
      this.actions.edit(field.value);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    });
    content.hidden = false;
    content.replaceChildren(field);
    foot.replaceChildren(
      h(
        "div",
        { class: "edit-buttons" },
        h("button", { type: "button", class: "quiet", onclick: close }, "Cancel"),
        h("button", { type: "button", class: "primary", onclick: save }, message.role === "user" ? "Send" : "Save"),
      ),
    );
    field.style.height = `${Math.min(field.scrollHeight + 4, innerHeight / 2)}px`;
    field.focus();
  }
}

function statistics({ stats, finish, role }) {
  if (role !== "assistant") return "";
  const parts = [];
  if (stats?.tokens) parts.push(`${stats.tokens} ${stats.tokens === 1 ? "token" : "tokens"}`);
  if (stats?.rate) parts.push(`${stats.rate < 10 ? stats.rate.toFixed(1) : Math.round(stats.rate)} tokens/s`);
  if (stats?.first) parts.push(`first after ${stats.first.toFixed(2)} s`);
  if (finish === "length") parts.push("cut at the limit of tokens");
  if (finish === "stopped") parts.push("stopped");
  return parts.join(" · ");
}
