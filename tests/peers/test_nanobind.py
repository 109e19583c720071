"""What llama-cpp-nanobind's tests and its API reference check, through `llama_cffi`.

https://github.com/lianghong/llama-cpp-nanobind; differences are in docs/drop-in.md.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny_gguf import CHATML, write_tiny

import llama_cffi
from llama_cffi import (
    GenerationError,
    Llama,
    LlamaConfig,
    LlamaError,
    LlamaGrammar,
    LlamaPool,
    Model,
    ModelLoadError,
    SamplingParams,
    UnifiedLLM,
    ValidationError,
)
from llama_cffi.chat.families import identify
from llama_cffi.demo import model_path
from llama_cffi.generation.aliases import ALIASES
from llama_cffi.grammars import tokens as compiled_grammars

DOCS = Path(__file__).parents[2] / "docs" / "drop-in.md"
OPTIONS: dict[str, Any] = {"n_ctx": 512, "n_threads": 1}
HELLO = [{"role": "user", "content": "Hello"}]
QUESTION = "What is 17 + 25?"

# Its public methods and their arguments, besides those whose reason the docs give.
METHODS: dict[type, dict[str, str]] = {
    Llama: {
        "__init__": "model_path config sampling",
        "__call__": "prompt max_tokens stop echo stream temperature seed",
        "tokenize": "text add_special parse_special",
        "detokenize": "tokens",
        "n_tokens": "text add_special",
        "kv_cache_clear": "",
        "token_bos": "",
        "token_eos": "",
        "token_eot": "",
        "n_vocab": "",
        "n_embd": "",
        "model_size": "",
        "n_params": "",
        "n_layer": "",
        "get_chat_template": "name",
        "token_to_piece": "token",
        "embed": "text",
        "create_embedding": "input model",
        "generate": "prompt max_tokens sampling stop echo logprobs stream seed reset_kv_cache",
        "generate_stream": "prompt max_tokens sampling stop seed reset_kv_cache",
        "generate_async": "prompt max_tokens sampling stop echo logprobs stream seed",
        "create_completion": "prompt max_tokens",
        "create_chat_completion": "messages max_tokens stream stop response_format grammar tools "
        "tool_choice reset_kv_cache temperature top_p top_k min_p repeat_penalty repeat_last_n",
        "create_chat_completion_async": "messages max_tokens stream stop response_format grammar "
        "tools tool_choice temperature",
        "embed_async": "text",
        "create_embedding_async": "input model",
        "reset": "",
        "kv_cache_seq_rm": "seq_id p0 p1",
        "kv_cache_seq_cp": "seq_id_src seq_id_dst p0 p1",
        "kv_cache_seq_keep": "seq_id",
        "kv_cache_seq_add": "seq_id p0 p1 delta",
        "kv_cache_seq_pos_max": "seq_id",
        "save_state": "path",
        "get_state": "",
        "load_lora": "path scale",
        "clear_lora": "",
        "perf": "",
        "perf_reset": "",
        "close": "",
    },
    LlamaPool: {
        "__init__": "model_path pool_size config warmup",
        "generate": "prompt max_tokens sampling stop",
        "generate_batch": "prompts max_tokens sampling stop",
        "create_chat_completion": "messages max_tokens temperature",
        "create_chat_completion_batch": "max_tokens temperature",
        "close": "",
    },
    UnifiedLLM: {
        "__init__": "model_path n_ctx n_batch n_ubatch n_gpu_layers verbose",
        "set_reasoning_level": "level",
        "generate": "prompt system_prompt max_tokens thinking stop",
        "generate_with_thinking": "prompt system_prompt max_tokens stop",
        "strip_thinking": "text",
        "n_tokens": "text",
        "kv_cache_clear": "",
        "close": "",
    },
    LlamaConfig: {
        "__init__": "model_path n_ctx n_batch n_ubatch n_seq_max n_threads n_threads_batch "
        "n_gpu_layers main_gpu split_mode use_mmap use_mlock check_tensors flash_attn offload_kqv "
        "embeddings rope_freq_base rope_freq_scale chat_format verbose seed",
    },
    SamplingParams: {
        "__init__": "temperature top_k top_p min_p min_keep repeat_penalty repeat_last_n "
        "presence_penalty frequency_penalty seed",
    },
    LlamaGrammar: {"from_string": "root", "from_json_schema": "schema"},
}
# Positions by which programs pass arguments.
ORDER: list[tuple[Callable[..., object], str]] = [
    (Llama.__init__, "model_path config sampling"),
    (Llama.generate, "prompt max_tokens"),
    (Llama.kv_cache_seq_cp, "seq_id_src seq_id_dst p0 p1"),
    (LlamaPool.__init__, "model_path n_parallel config warmup"),
    (UnifiedLLM.generate, "prompt system_prompt max_tokens"),
    (UnifiedLLM.generate_with_thinking, "prompt system_prompt max_tokens"),
]


def arguments(function: Callable[..., object]) -> set[str]:
    """The names that a function takes: parameters, options of `Unpack`, and their aliases."""
    names: set[str] = set()
    for parameter in inspect.signature(function).parameters.values():
        names.add(parameter.name)
        for options in re.findall(r"Unpack\[(\w+)\]", str(parameter.annotation)):
            names |= getattr(sys.modules[function.__module__], options).__annotations__.keys()
    return names | {alias for alias, name in ALIASES.items() if name in names}


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner, methods in METHODS.items() for name in methods]
)
def test_each_method_has_each_argument(owner: type, name: str) -> None:
    wanted = set(METHODS[owner][name].split())
    assert wanted <= arguments(getattr(owner, name)), wanted - arguments(getattr(owner, name))


@pytest.mark.parametrize(("function", "order"), ORDER)
def test_positions(function: Callable[..., object], order: str) -> None:
    names = list(inspect.signature(function).parameters)[1:]
    assert names[: len(order.split())] == order.split()


def test_every_other_public_name_is_there_or_in_the_docs() -> None:
    page = DOCS.read_text(encoding="utf-8").split("## From llama-cpp-nanobind")[1].split("\n## ")[0]
    for name in ("set_log_level", "disable_logging", "reset_logging", "print_system_info",
                 "shutdown", "GenerationError", "__version__"):  # fmt: skip
        assert hasattr(llama_cffi, name)
    for name in ("scores", "ctx", "instances", "backend", "model_config", "detect_model_family",
                 "MODEL_CONFIGS", "ModelFamily", "no_host", "add_bos", "parse_special",
                 "remove_special", "unparse_special", "token_probs", "message_lists", "family=",
                 "_llama"):  # fmt: skip
        assert re.search(rf"(?<!\w){re.escape(name)}", page), name


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    with Llama(str(model_path()), LlamaConfig(embeddings=True, **OPTIONS)) as llm:
        yield llm


@pytest.fixture(scope="module")
def endless(llm: Llama) -> dict[str, Any]:
    """Options of an answer that the model does not end."""
    return {"logit_bias": dict.fromkeys(llm.model.vocab.eog_tokens, -float("inf"))}


# test_inference


def test_generation(llm: Llama, endless: dict[str, Any]) -> None:
    text = llm.generate("The quick brown fox", max_tokens=12, temperature=0, **endless)
    assert isinstance(text, str)
    assert text.strip()
    params = SamplingParams(temperature=0.7, top_p=0.9, repeat_penalty=1.05, repeat_last_n=32)
    assert (params.penalty_last_n, params.repeat_last_n) == (32, 32)  # type: ignore[attr-defined]
    assert llm.generate("List two colors:", max_tokens=8, sampling=params, **endless)


def test_chat_completion_and_call(llm: Llama) -> None:
    response = llm.create_chat_completion(HELLO, max_tokens=4)
    assert response["object"] == "chat.completion"
    assert response["choices"][0]["message"]["role"] == "assistant"
    assert isinstance(response["choices"][0]["message"]["content"], str)
    answer = llm("Hello", max_tokens=5)
    assert isinstance(answer, dict)
    assert answer["choices"]
    assert answer["usage"]["prompt_tokens"] == llm.n_tokens("Hello")


def test_tokens(llm: Llama) -> None:
    text = "Hello world"
    tokens = llm.tokenize(text)
    assert all(isinstance(token, int) for token in tokens)
    assert llm.detokenize(tokens) == text
    assert llm.n_tokens(text) == len(tokens)
    assert llm.n_tokens(text, add_special=False) == len(llm.tokenize(text, add_special=False))
    stop = llm.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert stop == llm.tokenize("<|im_end|>", False, True) == [llm.token_eot()]
    assert stop == llm.tokenize("<|im_end|>", add_bos=False, special=True)
    assert llm.token_to_piece(stop[0]) == "<|im_end|>"
    assert "".join(map(llm.token_to_piece, tokens)) == text


def test_special_tokens_are_ids_or_minus_1(llm: Llama, tiny_model: Path) -> None:
    vocab = llm.model.vocab
    assert (llm.token_eos(), llm.token_eot(), llm.token_bos()) == (vocab.eos, vocab.eot, vocab.bos)
    assert llm.token_nl() == vocab.nl
    with Llama(tiny_model, n_ctx=64) as bare:
        found = [bare.token_bos(), bare.token_eos(), bare.token_eot(), bare.token_nl()]
        known = bare.model.vocab
        assert found == [
            -1 if t is None else t for t in (known.bos, known.eos, known.eot, known.nl)
        ]


def test_facts_about_the_model(llm: Llama) -> None:
    model = llm.model
    assert (llm.n_vocab(), llm.n_embd(), llm.n_layer()) == (len(model.vocab), 192, model.n_layer)
    assert (llm.n_params(), llm.model_size()) == (model.n_params, model.size_bytes)
    assert llm.metadata["general.name"]
    assert llm.metadata is llm.metadata
    assert llm.get_chat_template() == model.chat_template


def test_n_ctx_is_a_number_and_a_method(llm: Llama) -> None:
    assert llm.n_ctx == llm.n_ctx() == 512
    assert type(llm.n_ctx()) is int
    assert list(range(3))[: llm.n_ctx] == [0, 1, 2]
    assert f"{llm.n_ctx:>5}" == "  512"
    assert llm.n_ctx - 12 == 500


def test_chat_templates_by_name(tmp_path: Path) -> None:
    def with_tools(writer: Any) -> None:
        writer.add_chat_template([{"name": "tool_use", "template": "{{ tools }}"}])

    path = write_tiny(tmp_path / "m.gguf", edit=with_tools)
    with Llama(path, n_ctx=64) as llm:
        assert llm.get_chat_template() == CHATML
        assert llm.get_chat_template("tool_use") == "{{ tools }}"
        assert llm.get_chat_template("rag") == ""
    with Llama(write_tiny(tmp_path / "n.gguf", chat_template=None), n_ctx=64) as llm:
        assert llm.get_chat_template() == ""


def test_kv_cache_and_state(llm: Llama) -> None:
    llm.reset()
    assert llm.kv_cache_seq_pos_max() == -1
    llm.generate("Hello", max_tokens=5)
    assert llm.kv_cache_seq_pos_max() > 0
    state = llm.get_state()
    assert isinstance(state, bytes)
    assert state
    llm.kv_cache_seq_rm(0)
    assert llm.kv_cache_seq_pos_max() == -1
    llm.set_state(state)
    assert llm.kv_cache_seq_pos_max() > 0
    assert isinstance(llm.generate("Continue:", max_tokens=4), str)


def test_state_in_a_file(llm: Llama, tmp_path: Path) -> None:
    llm.generate("Hello world", max_tokens=4)
    held = llm.kv_cache_seq_pos_max()
    llm.save_state(str(tmp_path / "state"))
    llm.kv_cache_clear()
    assert llm.load_state(str(tmp_path / "state")) == held + 1
    assert isinstance(llm.generate("Continue:", max_tokens=4), str)


def test_grammars_and_json_mode(llm: Llama) -> None:
    grammar = LlamaGrammar.from_string('root ::= "yes" | "no" | "maybe"')
    answer = llm.create_chat_completion(HELLO, max_tokens=8, grammar=grammar, temperature=1.5)
    assert answer["choices"][0]["message"]["content"] in ("yes", "no", "maybe")
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    assert LlamaGrammar.from_json_schema(schema) == LlamaGrammar.from_json_schema(schema)
    answer = llm.create_chat_completion(
        HELLO, max_tokens=20, response_format={"type": "json_object"}, temperature=0
    )
    assert (answer["choices"][0]["message"]["content"] or "").startswith("{")


def test_a_grammar_is_compiled_once(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    compile_once = compiled_grammars.compiling

    def counted(*args: Any, **options: Any) -> Any:
        compiled.append(args)
        return compile_once(*args, **options)

    monkeypatch.setattr(compiled_grammars, "compiling", counted)
    schema = {"type": "object", "properties": {"compiled_once": {"type": "null"}}}
    form = {"type": "json_object", "schema": schema}
    for _ in range(2):
        llm.create_chat_completion(HELLO, max_tokens=4, response_format=form)
    assert len(compiled) == 1


def test_performance_counters(llm: Llama, endless: dict[str, Any]) -> None:
    llm.perf_reset()
    llm.generate("Test", max_tokens=3, **endless)
    perf = llm.perf()
    assert "n_eval" in perf
    assert {**perf} == {
        "t_load_ms": perf.load_ms,
        "t_p_eval_ms": perf.prompt_ms,
        "t_eval_ms": perf.generation_ms,
        "n_p_eval": perf.n_prompt,
        "n_eval": perf.n_generated,
    }
    assert perf["n_eval"] > 0
    assert perf["t_eval_ms"] > 0
    assert perf.get("no such") is None


@pytest.mark.parametrize(
    "wrong", [{"n_batch": 0}, {"n_ubatch": 0}, {"n_seq_max": 0}, {"n_ctx": -1}]
)
def test_configurations_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        LlamaConfig(model_path="dummy.gguf", **wrong)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 1.5}, {"top_k": -1}, {"min_p": 2}]
)
def test_sampling_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        SamplingParams(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"max_tokens": -1}, {"prompt": 123}, {"prompt": ""}]
)
def test_calls_out_of_range(llm: Llama, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        llm.generate(**{"prompt": "test", "max_tokens": 5, **wrong})


def test_errors() -> None:
    for error in (ModelLoadError, GenerationError, ValidationError):
        assert issubclass(error, LlamaError)
    with pytest.raises(ModelLoadError):
        Llama("nonexistent_model.gguf")


def test_closing() -> None:
    with Llama(model_path(), LlamaConfig(verbose=False, **OPTIONS)) as llm:
        assert llm.n_ctx() == 512
        assert isinstance(llm.generate("Hello", max_tokens=5), str)
    assert llm.model.closed
    llm.close()
    with pytest.raises(LlamaError, match="closed"):
        llm.generate("Hello")


def test_stops_are_strings_and_token_ids(llm: Llama) -> None:
    says = 'root ::= "one, two"'
    comma = llm.tokenize(",", False)[0]
    for stop, expected in (
        ([","], "one"),
        ([comma], "one"),
        (["END", "STOP", comma, "!"], "one"),
        ([llm.token_eos()], "one, two"),
    ):
        assert llm.generate("x", max_tokens=20, grammar=says, stop=stop) == expected
        assert "".join(llm.generate_stream("x", grammar=says, stop=stop)) == expected
        chat = llm.create_chat_completion(HELLO, grammar=says, stop=stop)
        assert chat["choices"][0]["message"]["content"] == expected
        assert llm("x", max_tokens=20, grammar=says, stop=stop)["choices"][0]["text"] == expected
    with pytest.raises(ValidationError):
        llm.generate("x", stop=[llm.n_vocab()])


def test_adapters_survive_reset(llm: Llama) -> None:
    llm.clear_lora()
    llm.generate("Test", max_tokens=4)
    llm.reset()
    assert isinstance(llm.generate("Test", max_tokens=4), str)


# test_optimizations


def test_a_continued_session_fills_the_cache(llm: Llama) -> None:
    llm.generate("Hello", max_tokens=5, reset_kv_cache=True)
    before = llm.kv_cache_seq_pos_max()
    assert before > 0
    llm.generate(" and good morning to you", max_tokens=5, reset_kv_cache=False)
    assert llm.kv_cache_seq_pos_max() > before


def test_embeddings(llm: Llama) -> None:
    response = llm.create_embedding(["test 1", "test 2", "test 3"])
    assert [len(item["embedding"]) for item in response["data"]] == [llm.n_embd()] * 3
    with (
        Llama(model_path(), **OPTIONS) as plain,
        pytest.raises(ValidationError, match="embeddings"),
    ):
        plain.embed("test")


def test_log_levels() -> None:
    try:
        for level in ("debug", "info", "warn", "warning", "error", "none", "NONE"):
            llama_cffi.set_log_level(level)
        with pytest.raises(ValueError, match="loud"):
            llama_cffi.set_log_level("loud")
    finally:
        llama_cffi.reset_logging()
    assert "=" in llama_cffi.print_system_info()


# test_streaming


def test_a_stream_is_incremental_and_gives_the_text_of_generate(
    llm: Llama, endless: dict[str, Any]
) -> None:
    sampling = SamplingParams(temperature=0.0, seed=42, **endless)
    prompt = "The capital of France is"
    stream = llm.generate_stream(prompt, max_tokens=16, sampling=sampling)
    first = next(stream)
    assert llm.engine.stats.n_generated < 16  # the rest is not generated yet
    whole = first + "".join(stream)
    llm.kv_cache_clear()
    assert llm.generate(prompt, max_tokens=16, sampling=sampling) == whole
    pieces = list(llm.generate(prompt, max_tokens=16, sampling=sampling, stream=True))
    assert "".join(pieces) == whole


def test_a_stream_can_be_left_early(llm: Llama, endless: dict[str, Any]) -> None:
    taken: list[str] = []
    for piece in llm.generate_stream("Test prompt", max_tokens=64, **endless):
        taken.append(piece)
        if len(taken) == 3:
            break
    assert len(taken) == 3
    assert list(llm.generate_stream("Another test", max_tokens=8, **endless))


# test_async


def test_async_calls(llm: Llama, endless: dict[str, Any]) -> None:
    async def main() -> None:
        assert isinstance(await llm.generate_async("Hello", max_tokens=8), str)
        stream = await llm.generate_async("Test", max_tokens=8, stream=True, **endless)
        pieces = [piece async for piece in stream]
        assert pieces
        assert all(isinstance(piece, str) for piece in pieces)
        response = await llm.create_chat_completion_async(HELLO, max_tokens=8)
        assert response["object"] == "chat.completion"
        answer = await llm.create_chat_completion_async(HELLO, max_tokens=8, stream=True)
        chunks = [chunk async for chunk in answer]
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        vector = await llm.embed_async("test")
        assert all(isinstance(x, float) for x in vector)
        both = await asyncio.gather(
            llm.generate_async("Hello", max_tokens=5), llm.generate_async("World", max_tokens=5)
        )
        assert [type(text) for text in both] == [str, str]

    asyncio.run(main())


def test_logprobs_are_returned_or_refused_never_dropped(
    llm: Llama, endless: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"max_tokens": 4, "temperature": 0, "logprobs": 2, **endless}
    choice = llm.generate("Hello", **options)
    assert choice["logprobs"]["tokens"]  # type: ignore[call-overload]

    async def main() -> None:
        found: list[Any] = [await llm.generate_async("Hello", **options)]
        with LlamaPool(model_path(), 2, **OPTIONS) as pool:
            found.append(await pool.generate("Hello", **options))
            found += await pool.generate_batch(["Hello"], **options)
        for each in found:
            assert each.keys() == choice.keys()  # type: ignore[attr-defined]
            assert len(each["logprobs"]["tokens"]) == 4

    asyncio.run(main())
    for refused in (
        lambda: llm.generate("Hello", stream=True, **options),
        lambda: llm.generate_stream("Hello", **options),
        lambda: asyncio.run(as_coroutine(llm.generate_async("Hello", stream=True, **options))),
    ):
        with pytest.raises(ValidationError, match="logprobs"):
            refused()


async def as_coroutine(call: Awaitable[Any]) -> Any:
    return await call


# test_pool


def test_pool() -> None:
    async def main() -> None:
        sampling = SamplingParams(temperature=0.7, top_k=40)
        async with LlamaPool(str(model_path()), 3, LlamaConfig(**OPTIONS), True) as pool:
            assert isinstance(await pool.generate("Test", max_tokens=8, sampling=sampling), str)
            texts = await pool.generate_batch(["One", "Two", "Three"], max_tokens=8, stop=["zzz"])
            assert [type(text) for text in texts] == [str] * 3
            many = await asyncio.gather(*(pool.generate(f"{i}", max_tokens=4) for i in range(6)))
            assert len(many) == 6
            response = await pool.create_chat_completion(HELLO, max_tokens=8)
            assert "message" in response["choices"][0]
            both = await pool.create_chat_completion_batch([HELLO, HELLO], max_tokens=8)
            assert all("choices" in each for each in both)

    asyncio.run(main())


def test_pool_attributes() -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="n_parallel"):
            LlamaPool(model_path(), pool_size=wrong)
    pool = LlamaPool(str(model_path()), pool_size=3, config=LlamaConfig(**OPTIONS))
    assert (pool.model_path, pool.pool_size, pool.config.n_ctx) == (str(model_path()), 3, 512)
    assert str(model_path()) in repr(pool)
    assert "3" in repr(pool)
    pool.close()
    pool.close()
    with pytest.raises(ValidationError, match="config"):
        LlamaPool(model_path(), 2, True)  # type: ignore[arg-type]


# test_unified


@pytest.mark.parametrize(
    ("file", "family", "thinks"),
    [
        ("Qwen3-8B-Q6_K.gguf", "qwen", True),
        ("Qwen3-30B-A3B-Instruct-2507-Q4_K_S.gguf", "qwen", False),
        ("gemma-2-9b-it-Q6_K.gguf", "gemma", False),
        ("gpt-oss-20b-Q4_K_M.gguf", "gpt-oss", True),
        ("phi-4-Q6_K.gguf", "phi", False),
        ("Ministral-3-14B-Reasoning-2512-Q6_K.gguf", "mistral", True),
        ("granite-3.3-8b-instruct.gguf", "granite", True),
        ("MiniCPM4-8B.gguf", "minicpm", False),
        ("unknown_model.gguf", "generic", False),
    ],
)
def test_families_by_file_name(file: str, family: str, thinks: bool) -> None:
    found = identify({}, f"models/{file}")
    assert (found.name, found.thinking != "never") == (family, thinks)


def test_the_architecture_tells_the_family_where_no_name_does() -> None:
    assert identify({"general.architecture": "command-r"}, "aya-expanse-8b.gguf").name == "cohere"


@pytest.fixture(scope="module")
def unified() -> Iterator[UnifiedLLM]:
    with UnifiedLLM(str(model_path()), verbose=False, **OPTIONS) as llm:
        yield llm


def test_unified(unified: UnifiedLLM) -> None:
    assert unified.generate(QUESTION, "You answer briefly.", 32) == "42"
    assert unified.generate(QUESTION, None, None) == "42"
    unified.kv_cache_clear()
    assert unified.generate(QUESTION, max_tokens=32) == "42"
    assert unified.n_ctx() == unified.n_ctx == 512
    assert unified.n_tokens(QUESTION) == unified.llm.n_tokens(QUESTION)
    assert unified.family.name in repr(unified)
    for wrong in (0, -5):
        with pytest.raises(ValueError, match="max_tokens"):
            unified.generate("test", max_tokens=wrong)
    for wrong_system in (16, 0, ["x"]):
        with pytest.raises(ValidationError, match="system_prompt"):
            unified.generate("test", wrong_system)  # type: ignore[call-overload]


def test_thinking_and_answer(unified: UnifiedLLM) -> None:
    assert unified.supports_thinking
    thinking, answer = unified.generate_with_thinking(QUESTION, None, 100)
    assert "17 + 25" in thinking
    assert answer == "42"
    assert "<think>" not in thinking + answer
    assert unified.generate(QUESTION, thinking=True) == "42"
    cut, rest = unified.generate_with_thinking(QUESTION, max_tokens=4)
    assert cut
    assert rest == ""


def test_strip_thinking(unified: UnifiedLLM, tmp_path: Path) -> None:
    for text, answer in (
        ("<think>2 + 2\n= 4</think>\n\n4", "4"),
        ("<think></think>4", "4"),
        ("<think>not finished", ""),
        ("no reasoning", "no reasoning"),
        ("say <think>x</think>", "say <think>x</think>"),
    ):
        assert unified.strip_thinking(text) == answer
    never = write_tiny(tmp_path / "gemma-2-2b.gguf", chat_template=CHATML)
    with UnifiedLLM(never, n_ctx=64) as llm:
        assert not llm.supports_thinking
        assert llm.strip_thinking("<think>x</think>y") == "<think>x</think>y"
        thinking, answer = llm.generate_with_thinking("hi", max_tokens=4)
        assert (thinking, type(answer)) == ("", str)


def test_reasoning_level(unified: UnifiedLLM, tmp_path: Path) -> None:
    try:
        unified.set_reasoning_level("high")
        assert unified.generate(QUESTION) == "42"
        n_thinking = unified.llm.engine.stats.n_generated
        assert unified.generate(QUESTION, thinking=False) == "42"  # the call's option wins
        assert unified.llm.engine.stats.n_generated < n_thinking
        assert unified.generate_with_thinking(QUESTION)[0]
        with pytest.raises(ValueError, match="reasoning_effort must be one of"):
            unified.set_reasoning_level("extreme")
    finally:
        unified.set_reasoning_level(None)
    assert unified.generate(QUESTION) == "42"
    # A template with levels is told the level.
    leveled = "{{ reasoning_effort }}:" + CHATML
    path = write_tiny(tmp_path / "gpt-oss-20b.gguf", chat_template=leveled)
    with UnifiedLLM(path, n_ctx=128) as llm:
        llm.set_reasoning_level("low")
        prompts: list[str] = []
        render = llm.llm.renderer.render

        def noted(*args: Any, **options: Any) -> Any:
            found = render(*args, **options)
            prompts.append(found.text)
            return found

        llm.llm.renderer.render = noted  # type: ignore[method-assign]
        llm.generate("hi", max_tokens=1)
        llm.generate("hi", max_tokens=1, reasoning_effort="high")
        assert [prompt.split(":")[0] for prompt in prompts] == ["low", "high"]
    never = write_tiny(tmp_path / "gemma-2-2b.gguf")
    with UnifiedLLM(never, n_ctx=64) as llm, pytest.raises(ValidationError, match="never thinks"):
        llm.set_reasoning_level("high")


def test_unified_closes_twice() -> None:
    llm = UnifiedLLM(model_path(), **OPTIONS)
    model: Model = llm.llm.model
    llm.close()
    llm.close()
    assert model.closed
