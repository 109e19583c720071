"""Calls that a type checker has to refuse: `nox -s typing`. Each line ignores its own error.

An ignore that ignores nothing is an error itself.
"""

from __future__ import annotations

from llama_cffi import Engine, InferenceEngine, Llama, LlamaPool, SamplingParams, UnifiedLLM

MESSAGES = [{"role": "user", "content": "Hi"}]


def misspelt_options(engine: Engine, llm: Llama, shared: InferenceEngine) -> None:
    Engine("m.gguf", n_contex=512)  # pyright: ignore[reportCallIssue]
    Llama("m.gguf", n_gpu_layer=1)  # pyright: ignore[reportCallIssue]
    LlamaPool("m.gguf", n_paralel=1)  # pyright: ignore[reportCallIssue]
    UnifiedLLM("m.gguf", ctx=1)  # pyright: ignore[reportCallIssue]
    SamplingParams(temprature=0.1)  # pyright: ignore[reportCallIssue]
    engine.generate("Hi", temprature=0.1)  # pyright: ignore[reportCallIssue]
    engine.generate_chat(MESSAGES, max_token=1)  # pyright: ignore[reportCallIssue]
    llm.generate("Hi", top_p_=1.0)  # pyright: ignore[reportCallIssue]
    llm.create_completion("Hi", max_toks=1)  # pyright: ignore[reportCallIssue]
    llm.create_chat_completion(MESSAGES, tool=[])  # pyright: ignore[reportCallIssue]
    shared.submit("Hi", prio=1)  # pyright: ignore[reportCallIssue]


def wrong_types(engine: Engine, llm: Llama) -> None:
    engine.generate(5)  # pyright: ignore[reportArgumentType]
    engine.generate("Hi", temperature="hot")  # pyright: ignore[reportArgumentType]
    llm.generate("Hi", stop=5.5)  # pyright: ignore[reportArgumentType]
    llm.create_chat_completion("Hi")  # pyright: ignore[reportArgumentType]
