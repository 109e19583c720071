"""Known problems of other libraries: split characters, templates, BOS, tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from support.tiny_gguf import CHATML, write_tiny

from llama_cffi import (
    ContextOverflowError,
    Llama,
    LlamaGrammar,
    TemplateError,
    ValidationError,
)
from llama_cffi.demo import model_path

HI = [{"role": "user", "content": "hi"}]


def load(path: Path, **options: Any) -> Llama:
    return Llama(path, **{"n_ctx": 256, "n_threads": 1, **options})


@pytest.mark.parametrize("text", ["añ€🙂é", "🙂" * 4, "e\u0301\u200d\U0001f468"])
def test_streams_are_split_between_characters(tiny_model: Path, text: str) -> None:
    """The tokens of the model are single bytes. llama-cpp-python #36, #57, #372."""
    grammar = LlamaGrammar.from_choices([text])
    with load(tiny_model) as llm:
        stream = llm("x", grammar=grammar, stream=True, max_tokens=100)
        pieces = [chunk["choices"][0]["text"] for chunk in stream]
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)
        stream = llm.create_chat_completion(HI, grammar=grammar, stream=True)
        deltas = [c["choices"][0]["delta"].get("content") or "" for c in stream]
        assert "".join(deltas) == text
        assert "".join(llm.generate_stream("x", 100, structured=grammar)) == text
        before = text[: text.find(text[1:])]
        stopped = llm("x", grammar=grammar, stop=text[1:], max_tokens=100)["choices"][0]
        assert (stopped["text"], stopped["finish_reason"]) == (before, "stop")


def test_broken_template_fails_chats_but_not_loading(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "broken.gguf", chat_template="{% for m in messages %}")
    with load(path) as llm:
        assert llm.generate("ab", 3) is not None
        with pytest.raises(TemplateError, match="line 1"):
            llm.create_chat_completion(HI)
    with load(path, chat_format="chatml") as llm:
        assert llm.create_chat_completion(HI, max_tokens=3)["choices"]
    with load(path, chat_format=CHATML) as llm:
        assert llm.create_chat_completion(HI, max_tokens=3)["choices"]


def test_tags_of_transformers_are_supported(tmp_path: Path) -> None:
    """llama-cpp-python #2225: a template with {% generation %} made loading fail."""
    tagged = CHATML.replace(
        "{{ message.content }}", "{% generation %}{{ message.content }}{% endgeneration %}"
    )
    with (
        load(write_tiny(tmp_path / "tagged.gguf", chat_template=tagged)) as llm,
        load(write_tiny(tmp_path / "plain.gguf")) as plain,
    ):
        assert llm.chat.renderer.render(HI) == plain.chat.renderer.render(HI)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ cycler.__init__.__globals__.os.system('touch ' ~ messages[0].content) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(999999999) %}{% endfor %}",
    ],
)
def test_templates_cannot_run_code(tmp_path: Path, attack: str) -> None:
    """CVE-2024-34359."""
    mark = tmp_path / "mark"
    path = write_tiny(tmp_path / "attack.gguf", chat_template=attack)
    with load(path) as llm, pytest.raises(TemplateError):
        llm.create_chat_completion([{"role": "user", "content": str(mark)}])
    assert not mark.exists()


def test_prompt_has_one_bos(tmp_path: Path) -> None:
    """llama-cpp-python #1501: the template writes BOS, and the tokenizer added another."""

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["tokenizer.ggml.add_bos_token"].value = True

    path = write_tiny(tmp_path / "bos.gguf", chat_template="{{ bos_token }}" + CHATML, edit=edit)
    with load(path) as llm:
        tokens, text = llm.chat.renderer.render(HI)
        assert text.startswith("<|endoftext|>")
        assert tokens.count(256) == 1
        assert llm.create_chat_completion(HI, max_tokens=2)["usage"]["prompt_tokens"] == len(tokens)
        # And if the caller renders the prompt.
        for prompt in (text, tokens):
            assert llm(prompt, max_tokens=2)["usage"]["prompt_tokens"] == len(tokens)
        assert llm("x", max_tokens=2)["usage"]["prompt_tokens"] == 2


def test_shapes_of_embeddings() -> None:
    """llama-cpp-python #2051, #1762 (more than n_batch tokens), langchain #21568."""
    with load(model_path(), n_batch=32, n_ubatch=32, embeddings=True) as llm:
        one = llm.embed("a fox")
        assert [type(x) for x in one] == [float] * llm.model.n_embd
        several = llm.embed(["a fox", "a hen " * 100])
        assert [len(row) for row in several] == [len(one)] * 2
        assert several[0] == pytest.approx(one, abs=0.01)
        assert llm.embed([]) == []
        answer = llm.create_embedding(["a fox", "a hen"])
        assert [row["index"] for row in answer["data"]] == [0, 1]
        assert json.loads(json.dumps(answer))["data"][0]["embedding"] == pytest.approx(
            one, abs=0.01
        )
    with load(model_path(), embeddings=True, pooling="none") as llm:
        rows = llm.embed("a fox")
        assert len(rows) == llm.n_tokens("a fox")


def test_descriptions_of_tools_cannot_break_the_grammar() -> None:
    """llama.cpp #27619, #1338, #1883: any description, any choice, streamed."""
    nasty = '"""\\ \n ::= root [^"]* {{x}} %} </tool_call> {"a": 1} 🙂'
    function = {
        "name": "look_up",
        "description": nasty + "<|im_end|>",
        "parameters": {
            "type": "object",
            "properties": {"what": {"type": "string", "description": nasty, "enum": [nasty, "b"]}},
            "required": ["what"],
            "additionalProperties": False,
        },
    }
    tools = [{"type": "function", "function": function}]
    with load(model_path(), n_ctx=1024) as llm:
        for choice in ("auto", "required", {"type": "function", "function": {"name": "look_up"}}):
            chunks = llm.create_chat_completion(
                HI, tools=tools, tool_choice=choice, stream=True, temperature=1.0, seed=1,
                max_tokens=300,
            )  # fmt: skip
            calls = [
                part
                for chunk in chunks
                for part in chunk["choices"][0]["delta"].get("tool_calls", ())
            ]
            if choice != "auto":
                assert calls[0]["function"]["name"] == "look_up"
                first = [c for c in calls if c["index"] == 0]
                text = "".join(c["function"].get("arguments", "") for c in first)
                assert json.loads(text)["what"] in (nasty, "b")


def test_drop_oldest_turns() -> None:
    system = {"role": "system", "content": "You are a friendly assistant."}
    talk = [system]
    for n in range(11, 41):
        talk += [
            {"role": "user", "content": f"What is {n} + 20?"},
            {"role": "assistant", "content": str(n + 20)},
        ]
    talk.append({"role": "user", "content": "What is 17 + 25?"})
    options: Any = {"temperature": 0, "max_tokens": 8}
    with load(model_path(), n_ctx=256) as llm:
        with pytest.raises(ContextOverflowError, match="no room"):
            llm.create_chat_completion(talk, **options)
        answer = llm.create_chat_completion(talk, context_policy="drop_oldest_turns", **options)
        assert answer["choices"][0]["message"]["content"] == "42"
        # As many turns are kept as fit.
        assert 200 < answer["usage"]["prompt_tokens"] <= 256 - 8
    with load(model_path(), n_ctx=256, context_policy="drop_oldest_turns") as llm:
        assert llm.create_chat_completion(talk, **options)["usage"] == answer["usage"]
        with pytest.raises(ContextOverflowError, match="no room"):
            llm.create_chat_completion([{"role": "user", "content": "word " * 300}], **options)
        with pytest.raises(ContextOverflowError, match="no room"):
            llm.generate("word " * 300, 5)


@pytest.mark.parametrize("n_parallel", [1, 2])
def test_the_last_message_is_continued(n_parallel: int) -> None:
    ask = [{"role": "user", "content": "What is 12 + 30?"}]
    with Llama(model_path(), n_ctx=256, n_threads=1, n_parallel=n_parallel) as llm:
        whole = llm.create_chat_completion(ask, temperature=0)["choices"][0]["message"]["content"]
        assert whole is not None
        begun = [*ask, {"role": "assistant", "content": whole[:1]}]
        options: Any = {"temperature": 0, "continue_final_message": True}
        answer = llm.create_chat_completion(begun, **options)["choices"][0]["message"]
        # The tokens of the beginning may be others than those that the model chose.
        prompt = llm.renderer.render(ask).text + whole[:1]
        raw = llm.create_completion(prompt, max_tokens=None, temperature=0)["choices"][0]["text"]
        assert answer["content"] == raw
        grammar = LlamaGrammar.from_regex("[0-9]{3}")
        held = llm.create_chat_completion(begun, grammar=grammar, **options)["choices"][0]
        assert len(held["message"]["content"] or "") == 3
        with pytest.raises(ValidationError, match="last message of the assistant"):
            llm.create_chat_completion(ask, continue_final_message=True)
        with pytest.raises(ValidationError, match="thinking"):
            llm.create_chat_completion(begun, thinking=True, **options)
        with pytest.raises(ValidationError, match="continue_final_message"):
            llm.create_chat_completion(begun, continue_final_message="yes")  # type: ignore[arg-type]
