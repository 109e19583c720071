// Requests to the server, and its streams of events.

/** What the server refused, with its message. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const KEY = "llama_cffi.key";

/** Return the API key that the user gave; "": none. */
export function apiKey() {
  return sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "";
}

/** Keep an API key until the tab is closed, or for good. */
export function setApiKey(key, isKept) {
  localStorage.removeItem(KEY);
  sessionStorage.setItem(KEY, key);
  if (isKept) localStorage.setItem(KEY, key);
}

/** Return the models of the server. */
export async function fetchModels() {
  return (await (await send("v1/models")).json()).data;
}

/** Throw a ServerError of status 401 if the server wants another key. */
export async function checkKey(model) {
  await send(`props?model=${encodeURIComponent(model)}`);
}

/** Generate the chunks of a chat completion. */
export async function* streamChat(body, signal) {
  const response = await send("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, response.status);
    yield chunk;
  }
  throw new ServerError("The connection ended before the answer was complete.");
}

async function send(path, options = {}) {
  const key = apiKey();
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = `${response.status} ${response.statusText}: ${text.slice(0, 500)}`;
  try {
    message = JSON.parse(text).error.message ?? message;
  } catch {
    // Not of this server: a proxy's page.
  }
  throw new ServerError(message, response.status);
}

/** Generate the data of server-sent events; comments, which keep connections alive, are skipped. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        } else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The connection to the server was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
