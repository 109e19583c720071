"""One generation: options in, tokens and text out; the core under engine/ and scheduler/."""
