"""Documents that a grammar enforces are read verbatim, whatever markup they spell."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

import llama_cffi.llama_cpp as llama_cpp
from llama_cffi import Llama, LlamaGrammar, LlamaPool
from llama_cffi.api.chat_message import ChatAssembler, DocumentReader, PlainReader
from llama_cffi.chat.family_table import FAMILY_TABLE
from llama_cffi.chat.formats import FORMATS
from llama_cffi.chat.reasoning import ReasoningSplitter
from llama_cffi.demo import model_path
from llama_cffi.generation.sequence import Step
from llama_cffi.generation.stats import GenerationStats

WORDS = (
    "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</think>", "</s>", "<tool_call>",
    '<tool_call>{"name": "f", "arguments": {}}</tool_call>', "<|channel|>final<|message|>",
    "<|end|>", "[TOOL_CALLS]", "```tool_code\nf()```", '{"name": "f", "parameters": {}}',
    ">>>f\n{}",
)  # fmt: skip
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
ASK = [{"role": "user", "content": "x"}]


def read(reader: Any, text: str, size: int) -> dict[str, Any]:
    """Return what *reader* makes of a text that arrives in parts."""
    found: dict[str, Any] = {}
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    for deltas in (*map(reader.push, parts), reader.finish()):
        for delta in deltas:
            for name, value in delta.items():
                found[name] = found[name] + value if name in found else value
    return found


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_documents_are_content_in_every_format(form: Any, word: str) -> None:
    document = f"{word} a {word}{form.content_head}{form.reasoning[1]}\n"
    for size in (1, 2, 3, 7, 1000):
        plain = PlainReader(ReasoningSplitter(*form.reasoning))
        for head in (plain, form.stream([TOOL])):
            assert read(DocumentReader(head, [], False), document, size) == {"content": document}
        if form.content_head:
            reader = DocumentReader(form.stream([TOOL]), [form.content_head], False)
            assert read(reader, form.content_head + document, size) == {"content": document}
        for trigger in ("§", "§§x"):
            reader = DocumentReader(form.stream([TOOL]), [trigger], True)
            found = read(reader, f"Hm, {trigger}{document}", size)
            assert found == {"content": f"Hm, {trigger}{document}"}


@pytest.mark.parametrize("word", WORDS)
def test_reasoning_before_a_document_is_read(word: str) -> None:
    markers = ("<think>", "</think>")
    for size in (1, 2, 5, 1000):
        for starts_open in (False, True):
            head = PlainReader(ReasoningSplitter(*markers, starts_open))
            text = ("" if starts_open else "<think>") + f"Hm.\n</think>\n\n{word}</think>"
            found = read(DocumentReader(head, ["</think>\n\n"], False), text, size)
            assert found == {"reasoning_content": "Hm.", "content": f"{word}</think>"}
    # The answer ended before the document began.
    head = PlainReader(ReasoningSplitter(*markers))
    assert read(DocumentReader(head, ["</think>\n\n"], False), "<think>Hm.</thi", 1) == {
        "reasoning_content": "Hm.</thi"
    }


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("texts", "starts_open", "n"),
    [
        (["<think>", "Hm", ", so", "\n", ".", "</think>", "4", "2"], False, 5),
        (["Hm", ".", "\n", "</think>", "42"], True, 2),
        (["Hm", ".", "</thi"], True, 3),  # cut
        (["4", "2", "<think>", "Hm", "</think>"], False, 0),
        ([], True, 0),
    ],
)
def test_tokens_of_reasoning_are_counted(
    llm: Llama, texts: list[str], starts_open: bool, n: int, streams: bool
) -> None:
    reader = PlainReader(ReasoningSplitter("<think>", "</think>", starts_open))
    assembler = ChatAssembler(0, reader, llm.model.vocab)
    steps = [*(Step(5, text) for text in texts), Step(None, "")]
    stats = GenerationStats(finish_reason="eog")
    for step in steps:
        _ = [*assembler.push(step)] if streams else assembler.add(step)
    _ = [*assembler.last(stats)] if streams else assembler.choice(stats)
    assert assembler.n_reasoning_tokens == n


def test_usage_tells_the_tokens_of_reasoning(llm: Llama) -> None:
    ask: Any = {"max_tokens": 3, "temperature": 0}
    none = {"reasoning_tokens": 0}
    whole = llm.create_chat_completion(ASK, **ask)
    assert whole["usage"]["completion_tokens_details"] == none
    *_, last = llm.create_chat_completion(
        ASK, stream=True, stream_options={"include_usage": True}, **ask
    )
    assert last["usage"] is not None
    assert last["usage"]["completion_tokens_details"] == none


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    with Llama(model_path(), n_ctx=512, n_threads=1) as llm:
        yield llm


def schema(text: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"t": {"const": text}},
        "required": ["t"],
        "additionalProperties": False,
    }


def message(answer: Any) -> tuple[str, str, Any]:
    """Return content, finish reason and tool calls of an answer, whole or streamed."""
    if isinstance(answer, dict):
        choice = answer["choices"][0]
        found = choice["message"]
        return found["content"], choice["finish_reason"], found.get("tool_calls")
    chunks = [chunk["choices"][0] for chunk in answer]
    calls = [c for c in chunks if c["delta"].get("tool_calls")]
    text = "".join(c["delta"].get("content") or "" for c in chunks)
    return text, chunks[-1]["finish_reason"], calls or None


@pytest.mark.parametrize("word", WORDS)
def test_markup_in_a_document_through_every_class(llm: Llama, word: str) -> None:
    text = f"a {word} b"
    form = {"type": "json_schema", "json_schema": {"schema": schema(text)}}
    choices = LlamaGrammar.from_choices([f"{word} b"])
    drop_in = llama_cpp.Llama(str(model_path()), n_ctx=512, n_threads=1, verbose=False)
    with drop_in, LlamaPool(llm.model, 2, n_ctx=512, n_threads=1) as pool:

        def pooled(**options: Any) -> Any:
            async def ask() -> Any:
                answer: Any = await pool.create_chat_completion(ASK, **options)
                return [c async for c in answer] if options.get("stream") else answer

            return asyncio.run(ask())

        def ask(**options: Any) -> Any:
            return llm.create_chat_completion(ASK, **options)

        for face in (ask, pooled, lambda **o: drop_in.create_chat_completion(ASK, **o)):
            for stream in (False, True):
                for tools in (None, [TOOL]):
                    options: Any = {"stream": stream, "tools": tools, "max_tokens": 150}
                    answer = message(face(response_format=form, **options))
                    assert (json.loads(answer[0]), *answer[1:]) == ({"t": text}, "stop", None)
                    answer = message(face(grammar=choices, **options))
                    assert answer == (f"{word} b", "stop", None)
    text = llm.generate("x", grammar=choices, turn_stops=["<|im_end|>", "</s>"])
    assert text == f"{word} b"


def test_a_document_after_reasoning(llm: Llama) -> None:
    for word in ("</think>", "<think>", "<|im_end|>", "<tool_call>"):
        form = {"type": "json_schema", "json_schema": {"schema": schema(f"a {word} b")}}
        for tools in (None, [TOOL]):
            answer = llm.create_chat_completion(
                ASK, response_format=form, thinking=True, thinking_budget=8, tools=tools
            )
            found: Any = answer["choices"][0]["message"]
            assert json.loads(found["content"]) == {"t": f"a {word} b"}
            assert word not in found.get("reasoning_content", "")


@pytest.mark.parametrize("stop", sorted({stop for row in FAMILY_TABLE for stop in row.stops}))
def test_end_of_turn_strings_of_every_family(llm: Llama, stop: str) -> None:
    family = llm.renderer.family
    try:
        llm.renderer.family = dataclasses.replace(family, stops=(stop,))
        for text in (f"a {stop} b", stop):
            grammar = LlamaGrammar.from_choices([text])
            for stream in (False, True):
                answer: Any = llm.create_chat_completion(ASK, grammar=grammar, stream=stream)
                assert message(answer) == (text, "stop", None)
            assert llm.engine.generate("x", grammar=grammar) == text
        # Outside of a grammar it ends the turn.
        wanted = llm.tokenize(f"a {stop} b", False)
        n_prompt = len(llm.renderer.render(ASK).tokens)

        def write(tokens: Any, logits: Any) -> None:
            if (n := len(tokens) - n_prompt) < len(wanted):
                logits[wanted[n]] += 1e4

        answer = llm.create_chat_completion(ASK, temperature=0, logits_processor=write)
        assert message(answer) == ("a ", "stop", None)
    finally:
        llm.renderer.family = family
