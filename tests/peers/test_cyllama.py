"""What cyllama's tests check, through llama_cffi. Differences: docs/cyllama.md.

https://github.com/shakfu/cyllama/tree/main/tests. Agents, RAG, MCP, whisper, stable-diffusion and
TTS are other subjects.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from support.odd_models import write_windowed
from support.tiny_gguf import write_tiny

from llama_cffi import (
    Batch,
    CancelledError,
    ChatTemplate,
    ClosedError,
    Context,
    ContextOverflowError,
    Embedder,
    Engine,
    Grammar,
    GrammarError,
    InferenceEngine,
    Llama,
    LlamaConfig,
    LlamaError,
    LlamaGrammar,
    LlamaPool,
    Model,
    ModelLoadError,
    NgramCache,
    PromptLookup,
    ResponseCache,
    SamplerChain,
    SamplingParams,
    Scorer,
    TemplateError,
    UnknownOptionError,
    ValidationError,
    ask,
    complete,
    copy_gguf,
    estimate_context_bytes,
    get_library,
    read_gguf,
    similarity,
)
from llama_cffi.demo import model_path

MODEL = str(model_path())
STORY = "Once upon a time"
QUESTION = [{"role": "user", "content": "What is 17 + 25?"}]
SMALL: dict[str, Any] = {"n_ctx": 256, "n_threads": 1}


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    with Llama(MODEL, **SMALL) as llm:
        yield llm


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(MODEL) as model:
        yield model


# api, generate, response, integrations


def test_a_config_has_their_fields_and_can_be_copied() -> None:
    """GenerationConfig is two objects: what a model is loaded with, and what an answer is like."""
    config = LlamaConfig(
        n_gpu_layers=0, main_gpu=0, split_mode="layer", tensor_split=[1, 2], n_ctx=512, n_batch=64
    )
    assert (config.n_gpu_layers, config.split_mode, config.n_ctx) == (0, "layer", 512)
    sampling = SamplingParams(
        temperature=0.9, top_k=20, top_p=0.8, min_p=0.1, repeat_penalty=1.2, penalty_last_n=32,
        frequency_penalty=0.1, presence_penalty=0.2, dry_multiplier=0.8, dry_base=1.75,
        dry_allowed_length=2, dry_penalty_last_n=-1, top_n_sigma=1.0, mirostat=2, mirostat_tau=4.0,
        mirostat_eta=0.2, seed=7,
    )  # fmt: skip
    assert sampling == SamplingParams(**{name: getattr(sampling, name) for name in vars(sampling)})
    # Their defaults are upstream's, and so are these.
    plain = SamplingParams()
    assert (plain.temperature, plain.top_k, plain.top_p, plain.min_p) == (0.8, 40, 0.95, 0.05)
    assert (plain.dry_base, plain.dry_allowed_length, plain.dry_multiplier) == (1.75, 2, 0.0)
    assert tuple(plain.dry_sequence_breakers) == ("\n", ":", '"', "*")


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("temperature", [-0.1], [0.0, 2.0]),
        ("top_k", [], [0, 1]),
        ("top_p", [-0.1, 1.1], [1.0]),
        ("min_p", [-0.1, 1.1], [0.0, 1.0]),
        ("repeat_penalty", [-0.1], [1.0]),
        ("penalty_last_n", [-2], [0]),
        ("frequency_penalty", [float("nan")], [0.0]),
        ("dry_multiplier", [-0.5], [0.0]),
        ("dry_base", [-1.0], [1.75]),
        ("dry_allowed_length", [-1], [0]),
        ("dry_penalty_last_n", [-2], [-1, 0]),
        ("mirostat", [3, -1], [0, 1, 2]),
        ("mirostat_tau", [-1.0], [5.0]),
        ("seed", [-2], [-1, 0]),
    ],
)
def test_sampling_out_of_range_is_a_value_error(name: str, bad: list[Any], good: list[Any]) -> None:
    for value in bad:
        with pytest.raises(ValueError, match=r"outside|must be"):
            SamplingParams(**{name: value})
    for value in good:
        SamplingParams(**{name: value})


def test_options_of_the_load_out_of_range_are_value_errors() -> None:
    for options in (
        {"n_ctx": -1}, {"n_ctx": 2**32}, {"n_batch": 0}, {"main_gpu": -1}, {"split_mode": "rows"},
        {"tensor_split": [-1.0]}, {"tensor_split": [0.5] * 99}, {"tensor_split": "half"},
        {"n_gpu_layers": "all"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"outside|must be|is not one of|takes"):
            Llama(MODEL, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="did you mean 'n_ctx'"):
        Llama(MODEL, n_ctz=64)  # type: ignore[call-arg]


def test_one_off_calls_whole_and_streamed() -> None:
    text = complete(STORY, MODEL, 20, temperature=0, n_ctx=256)
    pieces = [*complete(STORY, MODEL, 20, temperature=0, n_ctx=256, stream=True)]
    assert text
    assert "".join(pieces) == text
    assert len(pieces) > 1
    assert ask(QUESTION, MODEL, temperature=0, n_ctx=256) == "42"
    assert "".join(ask(QUESTION, MODEL, temperature=0, n_ctx=256, stream=True)) == "42"
    assert ask("What is 17 + 25?", MODEL, system_prompt="Be brief.", temperature=0, n_ctx=256)


def test_a_call_with_its_statistics(llm: Llama) -> None:
    """Response.stats and finish_reason are in the completion and in `engine.stats`."""
    answer = llm.create_completion(STORY, max_tokens=10, temperature=0)
    assert answer["usage"]["completion_tokens"] == 10
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["model"] == MODEL
    assert json.loads(json.dumps(answer)) == answer
    with Engine(MODEL, **SMALL) as engine:
        engine.generate(STORY, max_tokens=10, temperature=0, raw=True)
        stats = engine.stats
        assert stats.n_prompt > 0
        assert stats.n_generated == 10
        assert stats.decode_tokens_per_s > 0
        assert stats.prefill_s + stats.decode_s > 0


def test_tokens_reach_a_callback() -> None:
    seen: list[bytes] = []
    with Engine(MODEL, **SMALL) as engine:
        text = engine.generate(STORY, max_tokens=12, temperature=0, callback=seen.append)
    assert b"".join(seen).decode() == text


def test_temperatures(llm: Llama) -> None:
    greedy = {llm.generate(STORY, 12, temperature=0) for _ in range(3)}
    assert len(greedy) == 1
    assert {llm.generate(STORY, 12, temperature=1.5, top_k=1, seed=s) for s in range(3)} == greedy
    varied = {llm.generate(STORY, 12, temperature=1.5, seed=s) for s in range(6)}
    assert len(varied) > 1
    assert len({llm.generate(STORY, 12, temperature=1.5, seed=3) for _ in range(3)}) == 1


def test_stop_strings_whole_and_streamed(llm: Llama) -> None:
    text = llm.generate(STORY, 40, temperature=0)
    cut = text[6:9]
    for stop in (cut, [cut], ["never", cut], [cut * 50, cut]):
        expected = text[: text.index(cut)]
        assert llm.generate(STORY, 40, temperature=0, stop=stop) == expected
        assert "".join(llm.generate_stream(STORY, 40, temperature=0, stop=stop)) == expected
        assert llm.generate(STORY, 40, temperature=0, stop_sequences=stop) == expected  # type: ignore[call-overload]
    assert llm.generate(STORY, 40, temperature=0, stop=[]) == text
    assert llm.generate(STORY, 40, temperature=0, stop=[f"no{i}" for i in range(100)]) == text
    with pytest.raises(ValidationError, match="empty"):  # theirs ignores it
        llm.generate(STORY, 4, stop=[""])


def test_dry_and_top_n_sigma(llm: Llama) -> None:
    prompt = "Repeat: a fox and a dog and a fox and a dog and"
    plain = llm.generate(prompt, 12, temperature=0)
    dry = llm.generate(
        prompt,
        12,
        temperature=0,
        dry_multiplier=50.0,
        dry_allowed_length=1,
        dry_penalty_last_n=-1,
        dry_sequence_breakers=[],
    )
    assert "fox and a" in plain
    assert "fox and a" not in dry
    assert llm.generate(STORY, 5, top_n_sigma=1.0, seed=1)


def test_a_model_is_reused_reset_closed_and_opened_again() -> None:
    with Llama(MODEL, **SMALL) as llm:
        first = [llm.generate(STORY, 8, temperature=0) for _ in range(3)]
        llm.reset()
        assert [llm.generate(STORY, 8, temperature=0)] * 3 == first
    llm.close()
    llm.close()
    with pytest.raises(ClosedError):
        llm.generate(STORY, 2)
    with Llama(MODEL, **SMALL) as again:
        assert again.generate(STORY, 8, temperature=0) == first[0]


def test_openai_shapes(llm: Llama) -> None:
    answer = llm.create_chat_completion(
        [{"role": "system", "content": "Be brief."}, *QUESTION], temperature=0, max_tokens=20
    )
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    chunks = [*llm.create_chat_completion(QUESTION, temperature=0, stream=True)]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == "42"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    stopped = llm.create_chat_completion(QUESTION, temperature=0, stop=["2"])
    assert stopped["choices"][0]["message"]["content"] == "4"


# api_cache


def test_the_response_cache(llm: Llama) -> None:
    cache = ResponseCache(llm, max_entries=2)
    assert cache.generate("a", 2, temperature=0) == cache.generate("a", 2, temperature=0)
    assert (cache.info.hits, cache.info.misses, cache.info.n_entries) == (1, 1, 1)
    for prompt, n, temperature in (("b", 2, 0), ("a", 3, 0)):
        cache.generate(prompt, n, temperature=temperature)
    assert cache.info.n_entries == 2  # the oldest was dropped
    cache.generate("a", 2, temperature=0.5)  # a random seed is never kept
    assert cache.info.bypassed == 1
    cache.generate("a", 2, temperature=0.5, seed=42)
    cache.generate("a", 2, temperature=0.5, seed=42)
    assert cache.info.hits == 2
    cache.clear()
    assert cache.info.n_entries == 0


# async_api


def test_asyncio_whole_and_streamed() -> None:
    async def run() -> None:
        with Llama(MODEL, **SMALL) as llm:
            text = await llm.generate_async(STORY, 8, temperature=0)
            stream = await llm.generate_async(STORY, 8, temperature=0, stream=True)
            assert "".join([piece async for piece in stream]) == text
            answer = await llm.create_chat_completion_async(QUESTION, temperature=0)
            assert answer["choices"][0]["message"]["content"] == "42"
            # Concurrent calls queue, and each gets its own answer.
            both = await asyncio.gather(
                llm.generate_async(STORY, 8, temperature=0),
                llm.create_chat_completion_async(QUESTION, temperature=0),
            )
            assert both[0] == text

    asyncio.run(run())


# batching


def test_batches_of_prompts() -> None:
    prompts = [f"What is {i} + 3?" for i in range(5)]

    async def run() -> None:
        async with LlamaPool(MODEL, 3, **SMALL) as pool:
            answers = await pool.generate_batch(prompts, 6, temperature=0)
            alone = [await pool.generate(prompt, 6, temperature=0) for prompt in prompts]
            assert answers == alone
            assert await pool.generate_batch([], 6) == []
            assert len(await pool.generate_batch(prompts[:1], 6)) == 1
            for wrong in (None, "not a list", 5):
                with pytest.raises(ValidationError, match="must be a list"):
                    await pool.generate_batch(wrong, 6)  # type: ignore[arg-type]
            with pytest.raises(ValidationError):
                await pool.generate_batch(["Hello", 3], 6)  # type: ignore[list-item]
            mixed = ["   ", "Hello 世界 🌍", "<|im_end|>", "a" * 150, "tab\tnew\nline"]
            assert len(await pool.generate_batch(mixed, 4)) == len(mixed)
        with pytest.raises(ClosedError):
            await pool.generate_batch(prompts)

    asyncio.run(run())
    for n in (0, 257):
        with pytest.raises(ValidationError, match="n_parallel"):
            LlamaPool(MODEL, n, **SMALL)


def test_more_prompts_than_sequences_wait_with_their_details() -> None:
    """batch_generate refuses them; here they wait, and each handle has its own statistics."""
    with InferenceEngine(MODEL, 2, **SMALL) as engine:
        handles = [engine.submit(STORY, n, temperature=0, id=f"r{n}") for n in range(1, 7)]
        texts = [handle.result() for handle in handles]
        assert [handle.stats.n_generated for handle in handles] == [1, 2, 3, 4, 5, 6]
        assert all(texts[-1].startswith(text) for text in texts)
        assert [handle.request.id for handle in handles] == [f"r{n}" for n in range(1, 7)]


# cancel


def test_cancel_ends_the_generation_and_keeps_its_text() -> None:
    with Engine(MODEL, **SMALL) as engine:
        engine.cancel()  # nothing runs: no effect on the next one
        assert engine.generate("What is 17 + 25?", temperature=0) == "42"
        pieces: list[bytes] = []

        def cancel(piece: bytes) -> None:
            pieces.append(piece)
            if len(pieces) == 5:
                engine.cancel()
                engine.cancel()

        with pytest.raises(CancelledError) as error:  # theirs returns what there is
            engine.generate(STORY, max_tokens=None, ignore_eos=True, callback=cancel)
        assert error.value.text == b"".join(pieces).decode()
        assert engine.generate("What is 17 + 25?", temperature=0) == "42"


def test_a_handler_of_ctrl_c_is_called_and_stays() -> None:
    handled: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: handled.append(number))

    def interrupt(piece: bytes) -> None:
        if not handled:
            signal.raise_signal(signal.SIGINT)

    try:
        mine = signal.getsignal(signal.SIGINT)
        with Engine(MODEL, **SMALL) as engine:
            # A handler that does not raise lets the generation go on; the default one ends it.
            engine.generate("What is 17 + 25?", temperature=0, callback=interrupt)
            assert engine.stats.finish_reason == "eog"
            assert signal.getsignal(signal.SIGINT) is mine
            assert handled == [signal.SIGINT]
            signal.signal(signal.SIGINT, signal.default_int_handler)
            handled.clear()
            with pytest.raises(KeyboardInterrupt):
                engine.generate("What is 17 + 25?", temperature=0, callback=interrupt)
            assert engine.generate("What is 17 + 25?", temperature=0) == "42"
    finally:
        signal.signal(signal.SIGINT, before)


# chat, jinja_chat


def test_chat_templates(model: Model, llm: Llama) -> None:
    assert model.chat_template
    rendered = llm.renderer.render([{"role": "system", "content": "You."}, *QUESTION])
    assert rendered.text.index("You.") < rendered.text.index("17 + 25")
    turns = [
        {"role": "user", "content": "Q1"},
        {"role": "assistant", "content": "A1"},
        {"role": "user", "content": "Q2"},
    ]
    text = llm.renderer.render(turns).text
    assert -1 < text.find("Q1") < text.find("A1") < text.find("Q2")
    template = ChatTemplate(model.chat_template)
    whole, begins = (template.render(QUESTION, add_generation_prompt=n) for n in (True, False))
    assert whole.startswith(begins)
    assert len(whole) > len(begins)
    chatml = model.apply_chat_template([("user", "hi")], template="chatml")
    assert chatml == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(TemplateError):
        model.apply_chat_template([("user", "hi")], template="no such template")
    with Llama(MODEL, chat_format="llama3", **SMALL) as named:
        assert "<|start_header_id|>user" in named.renderer.render(QUESTION).text


@pytest.mark.parametrize(
    "messages", [[{"role": "user"}], [{"content": "no role"}], ["not a dict"], [], "hi"]
)
def test_messages_of_the_wrong_shape_are_errors(llm: Llama, messages: Any) -> None:
    with pytest.raises(ValueError, match=r"messages"):
        llm.create_chat_completion(messages)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("[{{ nothing }}]", "[]"),
        ("{%- if not x is defined %}{%- set x = 'set' %}{%- endif %}[{{ x }}]", "[set]"),
        ("{% for i in 'abc' %}{{ i }}{% if i == 'b' %}{% break %}{% endif %}{% endfor %}", "ab"),
        ("{{ {'a': 'é'} | tojson }}", '{"a": "é"}'),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
)  # fmt: skip
def test_what_templates_use(source: str, expected: str) -> None:
    with Llama(MODEL, chat_format=source, **SMALL) as llm:
        assert llm.renderer.render(QUESTION).text == expected


def test_a_template_may_refuse() -> None:
    refuses = "{{ raise_exception('boom') }}"
    with (
        Llama(MODEL, chat_format=refuses, **SMALL) as llm,
        pytest.raises(TemplateError, match="boom"),
    ):
        llm.create_chat_completion(QUESTION)


# comprehensive, error_messages, context


def test_files_that_are_no_models(tmp_path: Path) -> None:
    contents = {"empty": b"", "garbage": b"not a model" * 99, "short": b"GGUF\3\0\0\0", "cut": b""}
    contents["cut"] = Path(MODEL).read_bytes()[:5000]
    (tmp_path / "folder").mkdir()
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    for name in ("folder", "missing", *contents):
        for load in (Model, Llama, InferenceEngine, Embedder):
            with pytest.raises(ModelLoadError) as error:
                load(str(tmp_path / name))
            assert name in str(error.value)
    for wrong in (5, None, b"\0", ""):
        with pytest.raises(LlamaError):
            Llama(wrong)  # type: ignore[arg-type]


def test_contexts_that_cannot_be(model: Model) -> None:
    for n_ctx in (-1, 2**32):
        with pytest.raises(ValueError, match="n_ctx"):
            Context(model, n_ctx=n_ctx)
    with pytest.raises(LlamaError, match=r"takes at least .* GiB"):  # before C allocates
        Context(model, n_ctx=2**31 - 1)
    with Context(model, n_ctx=0, n_threads=1) as context:
        assert context.n_ctx == model.n_ctx_train


def test_prompts_at_the_limits(llm: Llama) -> None:
    with pytest.raises(ValidationError, match="empty"):  # theirs answers it
        llm.generate("", 4)
    with pytest.raises(ValidationError, match="max_tokens"):  # theirs returns nothing
        llm.generate(STORY, 0)
    with pytest.raises(ContextOverflowError, match="n_ctx"):
        llm.generate("word " * 4000, 4)
    assert isinstance(llm.generate("   ", 4, temperature=0), str)
    assert isinstance(llm.generate("a\0b", 4, temperature=0), str)
    with pytest.raises(ValidationError, match="UTF-8"):
        llm.generate("a\ud800", 4)
    near = llm.detokenize(llm.tokenize(STORY * 80, add_bos=False)[:250])
    answer = llm.create_completion(near, max_tokens=None, temperature=0, ignore_eos=True)
    usage = answer["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] <= 256
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "text",
    [
        "Hello, 世界!", "こんにちは", "Привет, мир", "مرحبا", "🎉🚀💻", "a\u0301 e\u0300",
        "\u200b\ufeff", "\U0001d573 𐍈", "<|im_start|><|endoftext|>", "\\n \t \r\n", "a" * 200,
    ],
)  # fmt: skip
def test_any_text(llm: Llama, text: str) -> None:
    assert llm.detokenize(llm.tokenize(text, add_bos=False)) == text
    whole = llm.generate(text, 6, temperature=0)
    pieces = [*llm.generate_stream(text, 6, temperature=0)]
    assert "".join(pieces) == whole
    whole.encode()  # no half characters


def test_threads_queue_instead_of_being_refused(llm: Llama) -> None:
    """Theirs raises RuntimeError; here a second caller waits."""
    expected = llm.generate(STORY, 10, temperature=0)
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(llm.generate(STORY, 10, temperature=0)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [expected] * 4
    with pytest.raises(ValidationError):
        llm.generate(STORY, 4, temperature=-1)
    assert llm.generate(STORY, 10, temperature=0) == expected  # nothing stays locked


def test_small_batches_give_the_same_answer() -> None:
    texts = set()
    for n_batch in (1, 7, 512):
        with Llama(
            MODEL, n_batch=n_batch, type_k="f32", type_v="f32", flash_attn=False, **SMALL
        ) as llm:
            texts.add(llm.generate("What is 17 + 25?" * 3, 4, temperature=0))
    assert len(texts) == 1


# gguf


def test_gguf_files_are_read(tmp_path: Path) -> None:
    file = read_gguf(MODEL)
    assert file.version == 3
    assert file.alignment == 32
    assert file.architecture == file.metadata["general.architecture"]
    assert "no.such.key" not in file.metadata
    with pytest.raises(KeyError):
        _ = file.metadata["no.such.key"]
    reader = gguf.GGUFReader(MODEL)
    assert [t.name for t in file.tensors] == [t.name for t in reader.tensors]
    assert [t.size_bytes for t in file.tensors] == [t.n_bytes for t in reader.tensors]
    assert len(file.metadata) == sum(not name.startswith("GGUF.") for name in reader.fields)


def test_gguf_keys_are_set_and_removed(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "test.string": "hello", "test.number": 42, "test.bool": True, "test.float": 3.25,
        "test.list": [1, 2, 3],
    }  # fmt: skip
    first = copy_gguf(MODEL, tmp_path / "first.gguf", values)
    found = read_gguf(first).metadata
    assert {key: found[key] for key in values} == values
    second = copy_gguf(first, tmp_path / "second.gguf", {"test.string": None, "test.number": 43})
    found = read_gguf(second).metadata
    assert "test.string" not in found
    assert found["test.number"] == 43
    with pytest.raises(ValidationError, match="no key"):
        copy_gguf(first, tmp_path / "third.gguf", {"test.nothing": None})
    with Model(second) as model:
        assert model.metadata["test.number"] == "43"


# json_schema


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "score": {"type": "number"},
        "active": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        "at": {
            "type": "object",
            "properties": {"city": {"const": "X"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "active", "tags", "at"],
    "additionalProperties": False,
}


def test_schemas_become_grammars_that_hold(llm: Llama) -> None:
    grammar = LlamaGrammar.from_json_schema(PERSON)
    assert grammar == LlamaGrammar.from_json_schema(json.dumps(PERSON))
    for seed in range(3):
        text = llm.generate("A person:", 200, grammar=grammar, seed=seed, temperature=0.7)
        found = json.loads(text)
        assert set(PERSON["required"]) <= set(found)  # type: ignore[arg-type]
        assert isinstance(found["age"], int)
        assert found["at"]["city"] == "X"
        assert set(found["tags"]) <= {"a", "b"}
    for wrong in ('{"type": "object", bad}', 123, {"type": "nothing"}):
        with pytest.raises(GrammarError):
            LlamaGrammar.from_json_schema(wrong)  # type: ignore[arg-type]


# memory


def test_memory_follows_the_shape_of_the_model(tmp_path: Path) -> None:
    paths = [write_tiny(tmp_path / f"{n}.gguf", n_layer=n) for n in (2, 4)]
    small, large = (Model(path, vocab_only=True) for path in paths)
    assert len(small.layer_bytes) == 2
    assert len(large.layer_bytes) == 4
    two, four = (estimate_context_bytes(m, 256, n_ubatch=1) for m in (small, large))
    assert four > 1.8 * two
    assert two > 1.9 * estimate_context_bytes(small, 128, n_ubatch=1)
    with Model(write_windowed(tmp_path / "window.gguf")) as windowed:
        assert windowed.n_swa > 0
        full, less = (estimate_context_bytes(m, 2048, n_ubatch=1) for m in (small, windowed))
        assert less < full / 2  # layers with a window count less
    with pytest.raises(ModelLoadError):
        Model(tmp_path / "none.gguf", vocab_only=True)
    with pytest.raises(ValidationError):
        estimate_context_bytes(small, -1)


def test_models_are_freed() -> None:
    seen: list[weakref.ref[Any]] = []
    for close in (True, False):
        llm = Llama(MODEL, **SMALL)
        llm.generate(STORY, 2)
        seen += [weakref.ref(llm), weakref.ref(llm.model), weakref.ref(llm.engine)]
        if close:
            llm.close()
        del llm
    gc.collect()
    assert [ref() for ref in seen] == [None] * 6


# model, params, new_bindings


def test_loading_reports_progress_and_can_be_stopped() -> None:
    seen: list[float] = []
    Model(MODEL, use_mmap=False, progress=seen.append).close()
    assert seen[-1] == 1.0
    assert all(0 <= share <= 1 for share in seen)
    with pytest.raises(ModelLoadError):
        Model(MODEL, use_mmap=False, progress=lambda share: False)
    with pytest.raises(ZeroDivisionError):
        Model(MODEL, use_mmap=False, progress=lambda share: share < 1 / 0)


def test_facts_of_a_model(model: Model) -> None:
    assert model.n_swa == 0
    assert model.n_embd_out == model.n_embd
    assert model.n_cls_out == 1
    assert model.classifier_labels == ()
    assert model.n_params > 0
    assert model.size_bytes > 0
    assert model.n_head_kv <= model.n_head
    assert get_library().system_info
    vocab = model.vocab
    assert len(vocab) == vocab.n_tokens
    assert vocab.is_eog(vocab.eos)


def test_tokenizing_grows_its_buffers(model: Model) -> None:
    text = "🙂 ünïcode " * 400
    assert model.vocab.detokenize(model.vocab.tokenize(text, add_special=False)) == text
    for token in range(0, len(model.vocab), 37):
        assert isinstance(model.vocab.token_to_piece(token), bytes)
    with pytest.raises(ValidationError):
        model.vocab.token_to_piece(len(model.vocab))


def test_logits_and_memory_of_a_context(model: Model) -> None:
    with Context(model, n_ctx=64, n_threads=1) as context:
        tokens = model.vocab.tokenize("Hello world")
        batch = Batch(64)
        batch.fill(tokens, 0)
        context.decode(batch)
        assert context.logits().shape == (len(model.vocab),)
        assert context.memory.can_shift
        with pytest.raises(ValidationError):
            context.memory.seq_div(0, 0, 4, 0)
        with pytest.raises(ValidationError):
            context.sequence_embedding(0)
        with pytest.raises(ValidationError):
            context.decode(Batch(8))  # an empty one


def test_texts_are_ranked_by_similarity() -> None:
    with Embedder(MODEL, pooling="mean", n_threads=1) as embedder:
        query, *others = embedder.embed(["a cat", "17 + 25 is", "a cat"])
        scores = similarity([query], others)[0]
        assert scores.argmax() == 1
        assert scores[1] == pytest.approx(1, abs=1e-3)
        with pytest.raises(ValidationError, match="classification head"):  # as a reranker has
            embedder.rerank("a cat", ["a cat"])


# sampler, wrapper_edges, llama_cpp_surface


def test_chains_are_built_read_edited_and_cloned(model: Model) -> None:
    with SamplerChain(model) as chain:
        assert len(chain) == 0
        chain.add_top_k(40).add_temp(0.7).add_dist(1)
        assert chain.names == ["top-k", "temp", "dist"]
        assert chain.names[-1] == "dist"
        with pytest.raises(IndexError):
            _ = chain.names[5]
        detached = chain.remove(1)
        assert detached.names == ["temp"]
        assert chain.names == ["top-k", "dist"]
        with pytest.raises(ValidationError, match="2 samplers"):
            chain.remove(2)
        twin = chain.clone()
        assert twin is not chain
        assert twin.names == chain.names
        chain.close()
        assert twin.names == ["top-k", "dist"]
    for _ in range(200):
        SamplerChain(model).add_top_k(5).add_greedy().clone().close()
    with SamplerChain(model) as chain:
        chain.add_top_n_sigma(2.0).add_adaptive_p(0.9, 0.1, 42)
        assert [name.lstrip("?") for name in chain.names] == ["top-n-sigma", "adaptive-p"]
    with SamplerChain(model) as chain:
        for multiplier in (0.8, 0.0):
            chain.add_dry(multiplier, 1.75, 2, -1, ["\n", ":", '"', "*"]).add_dry(multiplier)
        assert len(chain) == 4


def test_lazy_grammars_start_at_patterns_and_tokens(model: Model) -> None:
    import re

    eos = model.vocab.eos
    assert eos is not None
    lazy = Grammar(model, 'root ::= "<call>" "a"', triggers=[re.compile("(<call>)")])
    for token in model.vocab.tokenize("text <call>", add_special=False):
        assert lazy.waiting
        lazy.accept(token)
    assert not lazy.waiting
    with pytest.raises(ValidationError):  # an end token as a trigger would never be reached
        Grammar(model, 'root ::= "a"', trigger_tokens=[eos])
    assert not Grammar(model, 'root ::= "a"').waiting
    with Llama(MODEL, **SMALL) as llm:
        text = llm.generate(
            "Count:", 60, temperature=1.0, seed=2, ignore_eos=False,
            grammar='root ::= [a-z] "!!"', grammar_triggers=[re.compile("[aeiou]")],
        )  # fmt: skip
        assert re.fullmatch(r"[^aeiou]*([aeiou]!!)?", text), text


# ngram_cache, speculative


def test_ngram_caches(tmp_path: Path) -> None:
    cache = NgramCache(n_gram=4, n_gram_min=2)
    assert cache.draft([1, 2, 3], 5) == []
    cache.update([1, 2, 3, 4, 5, 2, 3, 4, 6, 2, 3, 4, 7])
    assert cache.draft([2, 3], 1) == [4]
    assert cache.draft([10, 11, 12], 5) == []
    other = NgramCache(n_gram=4, n_gram_min=2)
    other.update([10, 11, 12, 13])
    cache.merge(other)
    assert cache.draft([10, 11], 2) == [12, 13]
    cache.save(tmp_path / "cache")
    assert NgramCache.load(tmp_path / "cache").draft([10, 11], 2) == [12, 13]
    for shortest, longest in ((1, 2), (2, 4), (3, 4), (1, 4)):
        sized = NgramCache(longest, shortest)
        sized.update(range(1, 9))
        assert sized.draft([1, 2, 3], 3) == [4, 5, 6]
    with pytest.raises(ValidationError, match="another NgramCache"):
        cache.merge([1, 2, 3])  # type: ignore[arg-type]
    assert "NgramCache" in repr(cache)


def test_speculative_decoding_keeps_the_answer(tmp_path: Path) -> None:
    with Llama(MODEL, **SMALL) as plain:
        expected = plain.generate(STORY, 30, temperature=0)
    with Llama(MODEL, draft=PromptLookup(cache=NgramCache()), **SMALL) as llm:
        assert [llm.generate(STORY, 30, temperature=0) for _ in range(2)] == [expected] * 2
    for wrong in ({"n_draft": 0}, {"n_gram": 0}, {"n_gram_min": -1}):
        with pytest.raises(ValidationError):
            PromptLookup(**wrong)
    windowed = write_windowed(tmp_path / "window.gguf")
    with pytest.raises(ValidationError, match="speculative"):  # asked before anything is decoded
        InferenceEngine(windowed, 1, 64, draft=PromptLookup())


# simple, cli


def test_the_low_level_loop(model: Model) -> None:
    """Their README's loop; the command-line tool gives the same tokens."""
    with Context(model, n_ctx=128, n_threads=1) as context:
        chain = SamplerChain(model).add_greedy()
        tokens = model.vocab.tokenize(STORY)
        batch = Batch(512)
        batch.fill(tokens, 0)
        found: list[int] = []
        while len(found) < 20:
            context.decode(batch)
            token = chain.sample(context)
            if model.vocab.is_eog(token):
                break
            found.append(token)
            batch.fill([token], len(tokens) + len(found) - 1)
    with Engine(MODEL, n_ctx=128, n_threads=1) as engine:
        assert engine.generate_tokens(tokens, 20, temperature=0, repeat_penalty=1.0) == found


def test_what_is_dropped_is_freed(model: Model) -> None:
    context = Context(model, n_ctx=64, n_threads=1)
    chain = SamplerChain(model).add_greedy()
    refs = [weakref.ref(context), weakref.ref(chain)]
    del context, chain
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_unknown_options_are_errors(llm: Llama) -> None:
    with pytest.raises(UnknownOptionError, match="temperature"):
        llm.generate(STORY, temprature=0.5)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        SamplingParams(temprature=0.5)  # type: ignore[call-arg]


def test_log_probabilities_sum_up(llm: Llama) -> None:
    answer = llm.create_completion(STORY, max_tokens=4, temperature=0, logprobs=3)
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs is not None
    with Scorer(MODEL, n_ctx=64, n_threads=1) as scorer:
        (score,) = scorer.score_continuations(STORY, [answer["choices"][0]["text"]])
    assert sum(p for p in logprobs["token_logprobs"] if p is not None) == pytest.approx(
        score.logprob, abs=0.05
    )
