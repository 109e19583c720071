// Running answers: from the chunks of a stream to the message of a conversation.
import { streamChat } from "./api.js";
import { requestFields } from "./settings.js";

const MIN_TIMED = 0.05; // seconds; a rate over less says nothing

/** Return the messages of a request, which answers all but the messages from index `end` on. */
export function requestMessages(chat, end = chat.messages.length) {
  const { system } = chat.settings;
  const found = system ? [{ role: "system", content: system }] : [];
  for (const message of chat.messages.slice(0, end)) {
    const { role, content, calls, callId } = message;
    if (role === "tool") {
      found.push({ role, content, tool_call_id: callId });
    } else if (role === "user") {
      found.push({ role, content });
    } else if (calls?.length) {
      const tool_calls = calls.map(({ id, name, arguments: text }) => ({
        id,
        type: "function",
        function: { name, arguments: text },
      }));
      const reasoning_content = message.reasoning || undefined;
      found.push({ role, content: content || null, tool_calls, reasoning_content });
    } else if (content) {
      found.push({ role, content });
    }
  }
  return found;
}

/** An answer that is being generated into `message`; the last message of the chat so far. */
export class Run {
  #controller = new AbortController();

  constructor(chat, model, message) {
    this.chat = chat;
    this.message = message;
    const isContinued = Boolean(message.content);
    const end = chat.messages.length - (isContinued ? 0 : 1);
    this.body = { model, messages: requestMessages(chat, end), ...requestFields(chat.settings) };
    if (isContinued) this.body.continue_final_message = true;
  }

  /** End the answer; what is there stays. */
  stop() {
    this.#controller.abort();
  }

  /** Receive the answer; `onUpdate` is called after each chunk. Errors go into the message. */
  async receive(onUpdate) {
    const { message } = this;
    const started = performance.now();
    const elapsed = () => (performance.now() - started) / 1000;
    const stats = { tokens: 0 };
    let first = null;
    delete message.error;
    Object.assign(message, { running: true, finish: null, stats });
    try {
      for await (const chunk of streamChat(this.body, this.#controller.signal)) {
        const choice = chunk.choices[0];
        if (choice) {
          if (this.#take(choice)) {
            first ??= elapsed();
            stats.tokens += choice.logprobs?.content?.length ?? 1;
            if (message.content || message.calls?.length) {
              if (message.reasoning) stats.reasoningSeconds ??= elapsed() - first;
            }
          }
        }
        if (chunk.usage) {
          stats.tokens = chunk.usage.completion_tokens;
          stats.total = chunk.usage.total_tokens;
        }
        stats.first = first;
        const rest = elapsed() - first;
        if (first !== null && rest > MIN_TIMED) stats.rate = (stats.tokens - 1) / rest;
        onUpdate();
      }
    } catch (error) {
      if (error.name === "AbortError") {
        message.finish = "stopped";
      } else {
        message.error = error.message;
        message.status = error.status;
      }
    } finally {
      delete message.running;
    }
  }

  /** Add a choice's delta; return whether it has a token. */
  #take({ delta, logprobs, finish_reason: finish }) {
    const { message } = this;
    if (finish) message.finish = finish;
    if (delta.reasoning_content) message.reasoning = (message.reasoning ?? "") + delta.reasoning_content;
    if (delta.content) {
      message.content += delta.content;
      for (const token of logprobs?.content ?? []) {
        message.tokens ??= [];
        const others = token.top_logprobs.map((other) => [other.token, rounded(other.logprob)]);
        message.tokens.push([token.token, rounded(token.logprob), others]);
      }
    }
    for (const part of delta.tool_calls ?? []) {
      message.calls ??= [];
      const call = (message.calls[part.index] ??= { id: "", name: "", arguments: "" });
      call.id ||= part.id ?? "";
      call.name += part.function?.name ?? "";
      call.arguments += part.function?.arguments ?? "";
    }
    return Boolean(delta.content || delta.reasoning_content || delta.tool_calls);
  }
}

const rounded = (logprob) => Math.round(logprob * 1e4) / 1e4;
