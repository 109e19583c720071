"""The HTTP server: OpenAI's API and llama-server's routes over continuous batching."""
