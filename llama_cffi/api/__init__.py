"""The high-level API: completions and chats in OpenAI's shapes over one engine or many requests."""
