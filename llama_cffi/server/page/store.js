// Conversations, kept in the browser: one entry of localStorage each.

const PREFIX = "llama_cffi.chat.";

/** Return a new name that no other has. */
export function newId() {
  // crypto.randomUUID is missing on pages without HTTPS.
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

/** All conversations; those without messages are not written. */
export class Store {
  constructor() {
    this.chats = new Map();
    this.reload();
  }

  /** Read what is kept, also what other tabs have written. */
  reload() {
    const found = new Map([...this.chats].filter(([, chat]) => !chat.messages.length));
    for (let i = 0; i < localStorage.length; i++) {
      const key = localStorage.key(i);
      if (!key.startsWith(PREFIX)) continue;
      try {
        const chat = JSON.parse(localStorage.getItem(key));
        for (const message of chat.messages) {
          // The tab was closed before the end.
          if (message.running) Object.assign(message, { running: false, finish: "stopped" });
        }
        const known = this.chats.get(chat.id);
        found.set(chat.id, known?.updated >= chat.updated ? known : chat);
      } catch {
        // Written by something else.
      }
    }
    this.chats = found;
  }

  /** Return the conversations, the newest first. */
  list() {
    return [...this.chats.values()]
      .filter((chat) => chat.messages.length)
      .sort((a, b) => b.updated - a.updated);
  }

  /** Return a new conversation. */
  create(settings) {
    const chat = { id: newId(), title: "", updated: Date.now(), settings, messages: [] };
    this.chats.set(chat.id, chat);
    return chat;
  }

  /** Write a conversation; return whether the browser could keep it. */
  save(chat) {
    if (!chat.messages.length || this.chats.get(chat.id) !== chat) return true;
    try {
      localStorage.setItem(PREFIX + chat.id, JSON.stringify(chat));
      return true;
    } catch {
      // Full: text matters more than the probabilities of tokens.
      for (const other of this.chats.values()) {
        for (const message of other.messages) delete message.tokens;
      }
    }
    try {
      for (const other of this.list()) {
        localStorage.setItem(PREFIX + other.id, JSON.stringify(other));
      }
      return true;
    } catch {
      return false;
    }
  }

  remove(id) {
    this.chats.delete(id);
    localStorage.removeItem(PREFIX + id);
  }

  /** Call `listener` when another tab has changed a conversation. */
  onChange(listener) {
    addEventListener("storage", (event) => {
      if (event.key === null || event.key.startsWith(PREFIX)) {
        this.reload();
        listener();
      }
    });
  }
}
