"""The features of llama-cpp-nanobind: loading, generation, chat.

nanobind_sessions.py and nanobind_pool.py have the others. Deliberate differences are named in the
features.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import math
import queue
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from lines import MODEL, QUESTION, line, raw_greedy, refused, says

import llama_cffi
from llama_cffi import (
    GenerationError,
    Llama,
    LlamaConfig,
    LlamaError,
    LlamaGrammar,
    ModelLoadError,
    SamplingParams,
    ValidationError,
)
from llama_cffi.generation import sequence
from llama_cffi.grammars import tokens as structured_tokens

GREEDY = SamplingParams(temperature=0)
SUM = [{"role": "user", "content": QUESTION}]
STORY = [{"role": "user", "content": "Tell me a story about a fox named Milo."}]


def load(**options: Any) -> Llama:
    """Return the demo model with a small context."""
    return Llama(MODEL, **{"n_ctx": 512, "n_threads": 1, **options})


def story(llm: Llama) -> str:
    """Return a prompt with a long answer."""
    return llm.chat.renderer.render(STORY)[1]


def content(answer: Any) -> str:
    """Return the text of a chat completion."""
    text: str = answer["choices"][0]["message"]["content"]
    return text


@contextmanager
def counting(owner: Any, name: str) -> Iterator[list[None]]:
    """Count the calls of a method or function in a block."""
    calls: list[None] = []
    original = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return original(*args, **kwargs)

    setattr(owner, name, counted)
    try:
        yield calls
    finally:
        setattr(owner, name, original)


@line("nanobind", "Llama(path), Llama(path, config=LlamaConfig(...), sampling=...), with, close")
def _() -> None:
    config = LlamaConfig(model_path=str(MODEL), n_ctx=512, n_threads=1)
    llm = Llama(str(MODEL), config=config, sampling=GREEDY)
    assert llm.config.n_ctx == 512
    assert llm.generate(llm.chat.renderer.render(SUM)[1]) == "42"
    llm.close()
    llm.close()
    assert llm.model.closed
    refused(ValidationError, lambda: llm.generate("x"))
    with Llama(str(MODEL), config, n_ctx=256) as other:
        assert other.n_ctx == 256
    assert other.model.closed


@line("nanobind", "LlamaError > ModelLoadError, ValidationError, GenerationError")
def _() -> None:
    for error in (ModelLoadError, ValidationError, GenerationError):
        assert issubclass(error, LlamaError)
    assert "nonexistent.gguf" in refused(ModelLoadError, lambda: Llama("nonexistent.gguf"))
    with load() as llm:
        for max_tokens in (0, -1):
            error = refused(ValidationError, lambda n=max_tokens: llm.generate("test", n))  # type: ignore[misc]
            assert str(max_tokens) in error


@line("nanobind", "LlamaConfig: n_ctx, n_batch, n_ubatch, n_seq_max, n_threads, offload_kqv, ...")
def _() -> None:
    defaults = LlamaConfig()
    assert (defaults.n_gpu_layers, defaults.offload_kqv, defaults.n_ctx) == (-1, True, None)
    with load(n_batch=64, n_ubatch=32, n_seq_max=2, offload_kqv=False, n_gpu_layers=0) as llm:
        context = llm.engine.context
        assert (context.n_batch, context.n_ubatch, context.n_seq_max) == (64, 32, 2)
    with load(seed=7) as llm, load(seed=7) as other:
        answers = [llm.generate(story(llm), 12, temperature=1.5) for _ in range(4)]
        assert [other.generate(story(llm), 12, temperature=1.5) for _ in range(4)] == answers
        assert len(set(answers)) > 1
        assert len({llm.generate(story(llm), 12, seed=8) for _ in range(3)}) == 1
    with load(chat_format="gemma") as llm:
        assert "<start_of_turn>user" in llm.chat.renderer.render(SUM)[1]


@line("nanobind", "verbose=False is quiet; here it does not affect other instances, so no warning")
def _() -> None:
    with warnings.catch_warnings(), load(verbose=True) as loud:
        warnings.simplefilter("error")
        native = logging.getLogger("llama_cffi.native")
        before = native.level, native.disabled
        with load(verbose=False) as quiet:
            assert (native.level, native.disabled) == before
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                quiet.generate("x", 2)
                loud.generate("x", 2)
            assert (out.getvalue(), err.getvalue()) == ("", "")


@line("nanobind", "SamplingParams(temperature, top_k, top_p, repeat_penalty, ...), validated")
def _() -> None:
    with load() as llm:
        tokens, text = llm.chat.renderer.render(STORY)
        greedy = llm.model.vocab.detokenize(raw_greedy(llm.model, tokens, 24))
        assert llm.generate(text, 24, SamplingParams(temperature=0)) == greedy
        assert llm.generate(text, 24, SamplingParams(temperature=5.0, top_k=1)) == greedy
        assert llm.generate(text, 24, SamplingParams(temperature=5.0, top_p=1e-6)) == greedy
        assert llm.generate(text, 24, SamplingParams(temperature=5.0, seed=3)) != greedy
        penalised = SamplingParams(temperature=0, repeat_penalty=5.0)
        assert llm.generate(text, 24, penalised) != greedy
    for bad in ({"temperature": -1}, {"top_p": 1.5}, {"top_k": -1}, {"min_keep": -1}):
        refused(ValidationError, lambda bad=bad: SamplingParams(**bad))  # type: ignore[misc]


@line("nanobind", "generate(prompt, max_tokens, sampling=, stop=, echo=, logprobs=, stream=)")
def _() -> None:
    with load(sampling=GREEDY) as llm:
        prompt = story(llm)
        whole = llm.generate(prompt, max_tokens=16)
        assert llm.generate(prompt, max_tokens=16, echo=True) == prompt + whole
        assert llm.generate(prompt, max_tokens=16, stop=[whole[8:11]]) == whole[:8]
        pieces = list(llm.generate(prompt, max_tokens=16, stream=True))
        assert len(pieces) > 1
        assert "".join(pieces) == whole
        choice = llm.generate(prompt, max_tokens=16, logprobs=2)
        assert choice["text"] == whole
        assert all(value <= 0 for value in choice["logprobs"]["token_logprobs"])
        assert all(len(top) >= 2 for top in choice["logprobs"]["top_logprobs"])


@line("nanobind", "stream=True yields text token by token; theirs buffers it")
def _() -> None:
    with load(sampling=GREEDY) as llm:
        pieces = llm.generate(story(llm), max_tokens=100, stream=True)
        next(pieces)
        assert llm.engine.stats.n_generated < 5
        pieces.close()


@line("nanobind", "generate_stream: token by token, from a thread too; leaving early; errors")
def _() -> None:
    with load(sampling=GREEDY) as llm:
        prompt = story(llm)
        whole = llm.generate(prompt, 24)
        found: queue.Queue[str | None] = queue.Queue()

        def work() -> None:
            for piece in llm.generate_stream(prompt, 24):
                found.put(piece)
            found.put(None)

        thread = threading.Thread(target=work)
        thread.start()
        assert "".join(iter(found.get, None)) == whole
        thread.join()
        for _ in llm.generate_stream(prompt, max_tokens=400):
            break
        assert llm.generate(prompt, 24) == whole  # immediately: the stream has ended
        refused(ValidationError, lambda: llm.generate_stream(prompt, max_tokens=0))

        def fails(_ids: Any, _scores: Any) -> None:
            raise KeyError("mine")

        refused(KeyError, lambda: list(llm.generate_stream(prompt, logits_processor=[fails])))


@line("nanobind", "generate_async, async for chunk in await generate_async(..., stream=True)")
def _() -> None:
    async def main(llm: Llama) -> None:
        prompt = story(llm)
        whole = await llm.generate_async(prompt, max_tokens=24)
        assert whole == llm.generate(prompt, 24)
        chunks = [c async for c in await llm.generate_async(prompt, max_tokens=24, stream=True)]
        assert len(chunks) > 1
        assert "".join(chunks) == whole
        answer = await llm.create_chat_completion_async(SUM, max_tokens=16, temperature=0)
        assert content(answer) == "42"
        chat = await llm.create_chat_completion_async(SUM, temperature=0, stream=True)
        parts = [c["choices"][0]["delta"].get("content") or "" async for c in chat]
        assert "".join(parts) == "42"
        try:
            await llm.generate_async("test", max_tokens=0, stream=True)
        except ValidationError:
            return
        raise AssertionError("no ValidationError")

    with load(sampling=GREEDY) as llm:
        asyncio.run(main(llm))


@line("nanobind", "calls on one instance queue, from any thread; theirs is not thread-safe")
def _() -> None:
    async def main(llm: Llama) -> list[str]:
        return await asyncio.gather(
            *(llm.generate_async(story(llm), 12, seed=i) for i in range(20))
        )

    with load() as llm:
        llm.generate(story(llm), 1)  # evaluating the whole prompt rounds otherwise
        expected = [llm.generate(story(llm), 12, seed=i) for i in range(20)]
        assert asyncio.run(main(llm)) == expected
        found: dict[int, str] = {}

        def ask(first: int) -> None:
            for i in range(first, 20, 4):
                found[i] = llm.generate(story(llm), 12, seed=i)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[i] for i in range(20)] == expected


@line("nanobind", "create_chat_completion: OpenAI's format")
def _() -> None:
    with load() as llm:
        answer = llm.create_chat_completion(SUM, max_tokens=8, temperature=0)
        assert answer["object"] == "chat.completion"
        assert answer["id"].startswith("chatcmpl-")
        assert abs(answer["created"] - time.time()) < 100
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": "42"}
        assert answer["choices"][0]["finish_reason"] == "stop"
        usage = answer["usage"]
        assert usage["prompt_tokens"] == len(llm.chat.renderer.render(SUM)[0])
        assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
        chunks = list(llm.create_chat_completion(SUM, temperature=0, stream=True))
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"


@line("nanobind", 'response_format={"type": "json_object"}, with and without "schema"')
def _() -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Ada", "Bo"]}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
    }
    with load() as llm:
        answer = llm.create_chat_completion(
            [{"role": "user", "content": "Turn on the lamp in the kitchen."}],
            response_format={"type": "json_object"},
            temperature=0,
        )
        assert isinstance(json.loads(content(answer)), dict)
        for seed in range(3):
            answer = llm.create_chat_completion(
                SUM,
                response_format={"type": "json_object", "schema": schema},
                temperature=1.5,
                seed=seed,
            )
            found = json.loads(content(answer))
            assert found["name"] in ("Ada", "Bo")
            assert isinstance(found["age"], int)


@line("nanobind", "create_chat_completion(grammar=LlamaGrammar.from_string(...))")
def _() -> None:
    grammar = LlamaGrammar.from_string('root ::= "yes" | "no"')
    with load() as llm:
        for seed in range(4):
            answer = llm.create_chat_completion(SUM, grammar=grammar, temperature=2.0, seed=seed)
            assert content(answer) in ("yes", "no")


@line("nanobind", "the grammar comes before the chain; temperature and top_p still count")
def _() -> None:
    with load() as llm:
        prompt = story(llm)
        list(llm.engine.steps(llm.tokenize(prompt, special=True), 1, temperature=0))
        logits = llm.engine.context.logits().astype(np.float64)
        vocab = llm.model.vocab
        letters = {t: vocab.token_to_piece(t) for t in range(vocab.n_tokens)}
        ids = [t for t, piece in letters.items() if piece in (b"a", b"b", b"c")]
        assert logits.argmax() not in ids  # so that the best one is forbidden
        scores = logits[ids] / 2.0
        p = np.exp(scores - scores.max())
        p /= p.sum()
        for grammar in (
            LlamaGrammar.from_regex("[abc]"),
            LlamaGrammar.from_string("root ::= [abc]"),
        ):
            # Without other limits the draws follow the softmax over what is allowed.
            free = SamplingParams(
                temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, structured=grammar, seed=1
            )
            drawn = [llm.generate(prompt, 1, free, seed=i) for i in range(400)]
            for token, share in zip(ids, p, strict=True):
                seen = drawn.count(letters[token].decode()) / 400
                assert abs(seen - share) < 4 * math.sqrt(share * (1 - share) / 400) + 0.01
            # With a small top_p only the best allowed one is left.
            best = letters[ids[int(np.argmax(logits[ids]))]].decode()
            narrow = SamplingParams(temperature=2.0, top_p=1e-4, structured=grammar)
            assert {llm.generate(prompt, 1, narrow, seed=i) for i in range(20)} == {best}
        assert llm.generate(prompt, 20, grammar=says("never this"), temperature=1.5) == "never this"


@line("nanobind", "a grammar is compiled once per schema, with any other options")
def _() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    with load() as llm, counting(structured_tokens, "compiling") as compiled:
        for seed in range(5):
            llm.create_chat_completion(
                SUM,
                response_format={"type": "json_object", "schema": schema},
                temperature=0.5 + seed / 10,
                seed=seed,
                max_tokens=20,
            )
        assert len(compiled) == 1


@line(
    "nanobind",
    "stop sequences of several tokens; log-probabilities only on request",
)
def _() -> None:
    with load(sampling=GREEDY) as llm:
        prompt = story(llm)
        whole = llm.generate(prompt, 30)
        stop = whole[10:22]
        assert len(llm.tokenize(stop, False)) > 2
        with counting(sequence, "logprob") as computed:
            assert llm.generate(prompt, 30, stop=[stop, "never this"]) == whole[:10]
            assert "".join(llm.generate_stream(prompt, 30, stop=stop)) == whole[:10]
            assert len(computed) == 0
            llm.generate(prompt, 30, stop=stop, logprobs=0)
            assert len(computed) > 0
        answer = llm.create_chat_completion(STORY, temperature=0, max_tokens=30, stop=[stop])
        assert content(answer) == whole[:10]


@line("nanobind", "tokenize, detokenize, n_tokens; usage has the tokens that were decoded")
def _() -> None:
    with load() as llm:
        text = "Hello <|im_end|> añ🙂"
        tokens = llm.tokenize(text)
        assert llm.detokenize(tokens) == text
        assert llm.n_tokens(text) == len(tokens)
        assert len(llm.tokenize("<|im_end|>", special=True)) < len(llm.tokenize("<|im_end|>"))
        answer = llm.create_chat_completion(SUM, max_tokens=4)
        assert answer["usage"]["prompt_tokens"] == llm.engine.stats.n_prompt


@line("nanobind", "the GIL is released: another thread runs while tokens are computed")
def _() -> None:
    with load(sampling=GREEDY, n_ctx=1024) as llm:
        ticks, done = [0], threading.Event()

        def count() -> None:
            while not done.is_set():
                ticks[0] += 1
                time.sleep(0.0005)

        counter = threading.Thread(target=count)
        counter.start()
        before = ticks[0]
        llm.generate("word " * 400, 50)
        during = ticks[0] - before
        done.set()
        counter.join()
        assert during > 3


@line("nanobind", "one batch is reused for all tokens")
def _() -> None:
    with load(sampling=GREEDY) as llm, counting(llama_cffi.Batch, "__init__") as made:
        assert llm.generate(story(llm), 40)
        assert len(made) == 0
