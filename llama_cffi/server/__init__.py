"""The HTTP server: OpenAI's and other clients' APIs over one model or several."""
