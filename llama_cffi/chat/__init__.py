"""Chat templates, tool calls and reasoning: messages to prompts, and answers back to messages.

Nothing here uses a model.
"""
