"""Messages in, text out, and back: templates, tool calls, reasoning. Knows nothing of models."""
