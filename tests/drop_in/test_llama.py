"""The drop-in Llama: llama-cpp-python's arguments, defaults and results."""

from __future__ import annotations

import asyncio
import json
import pickle
import random
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builds import MIDDLE, OLD
from support.children import Child
from support.tiny_gguf import write_tiny

import llama_cffi
import llama_cffi.llama_cpp as llama_cpp
from llama_cffi import ValidationError
from llama_cffi.demo import model_path
from llama_cffi.llama_cpp import Llama

PROMPT = "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n"
SUM = [{"role": "user", "content": "What is 17 + 25?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
FUNCTION: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    path = str(model_path())
    with Llama(path, n_ctx=512, n_threads=1, logits_all=True, embedding=True, seed=7) as llm:
        yield llm


def text_of(answer: Any) -> str:
    text: str = answer["choices"][0]["text"]
    return text


# --- the constructor -------------------------------------------------------------------------


def test_defaults_and_attributes() -> None:
    with Llama(str(model_path()), n_threads=1) as llm:
        assert (llm.n_ctx(), llm.n_batch, llm.context_params.n_ctx) == (512, 512, 512)
        assert (llm.n_vocab(), llm.n_embd()) == (1536, 192)
        vocab = llm.model.vocab
        assert (llm.token_bos(), llm.token_eos(), llm.token_nl()) == (
            vocab.bos,
            vocab.eos,
            vocab.nl,
        )
        assert llm.metadata["general.architecture"] == "llama"
        assert "tokenizer.chat_template" in llm.metadata
        assert llm.config.seed == -1
        assert llm.model_params.n_gpu_layers == 0
        assert llm.pooling_type() == -1
    llm.close()


def test_arguments_of_langchain_and_of_older_versions() -> None:
    with Llama(
        str(model_path()), rope_freq_scale=1.0, rope_freq_base=10000.0, lora_path=None,
        lora_base=None, n_ctx=512, n_parts=-1, seed=-1, f16_kv=True, logits_all=False,
        vocab_only=False, use_mlock=False, n_threads=1, n_batch=8, use_mmap=True,
        last_n_tokens_size=64, verbose=True, device=None, rpc_servers=None, mul_mat_q=True,
        low_vram=False, n_gqa=None, rms_norm_eps=None, numa=False, draft_model=None,
    ) as llm:  # fmt: skip
        assert llm.engine.context.n_batch == 8
        assert text_of(llm(PROMPT, temperature=0)) == "42"


def test_enums_by_number_and_by_name(tmp_path: Path) -> None:
    with Llama(
        model_path(), n_ctx=64, n_threads=1, split_mode=llama_cpp.LLAMA_SPLIT_MODE_NONE,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN, type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32, rope_scaling_type=llama_cpp.LLAMA_ROPE_SCALING_TYPE_NONE,
        attention_type=llama_cpp.LLAMA_ATTENTION_TYPE_CAUSAL, embedding=True,
        seed=llama_cpp.LLAMA_DEFAULT_SEED, context_policy="shift",
    ) as llm:  # fmt: skip
        config = llm.config
        assert (config.type_k, config.pooling, config.seed) == ("f32", "mean", -1)
        assert llm.pooling_type() == llama_cpp.LLAMA_POOLING_TYPE_MEAN
        assert np.shape(llm.embed("a b c")) == (192,)
    with Llama(
        str(model_path()), n_ctx=64, n_threads=1, type_k="f32",  # type: ignore[arg-type]
        attention_type=llama_cpp.LLAMA_ATTENTION_TYPE_NON_CAUSAL,
    ) as llm:  # fmt: skip
        assert llm.config.type_k == "f32"
        assert not llm.engine.context.causal_attn


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"rpc_servers": "host:50052"}, "rpc_servers='host:50052' is not supported"),
        ({"numa": 1}, "numactl"),
        ({"lora_base": "x"}, "lora_path"),
        ({"device": "cuda"}, "n_gpu_layers"),
        ({"type_k": 10}, "type_k=10 must be one of 0 = f32"),
        ({"pooling_type": 9}, "pooling_type=9"),
        ({"n_ctx": -1}, "n_ctx"),
        ({"n_ctx": "512"}, "n_ctx"),
        ({"n_batch": -1}, "n_batch"),
        ({"n_ubatch": 0}, "n_ubatch"),
        ({"split_mode": [1]}, "split_mode"),
        ({"type_v": "q9"}, "type_v"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_unsupported_arguments_are_refused(option: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Llama(str(model_path()), **option)


def test_a_misspelled_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="n_gpu_layer"):
        Llama(str(model_path()), n_gpu_layer=3)
    with pytest.raises(llama_cffi.ModelLoadError):
        Llama("nowhere.gguf")


def test_only_the_vocabulary() -> None:
    path = str(model_path())
    with Llama(path, vocab_only=True) as vocab, Llama(path, n_threads=1) as llm:
        for text in (b"What is 17 + 25?", b"<|im_end|>a", b"", "é日本".encode()):
            for special in (False, True):
                tokens = vocab.tokenize(text, special=special)
                assert tokens == llm.tokenize(text, special=special)
                assert vocab.detokenize(tokens) == llm.detokenize(tokens)
        for name in ("n_ctx", "n_vocab", "token_bos", "token_eos", "token_nl", "pooling_type"):
            assert getattr(vocab, name)() == getattr(llm, name)(), name
        assert vocab.metadata == llm.metadata
        assert vocab.tokenizer().encode("a b") == llm.tokenizer().encode("a b")
        assert (vocab.model.vocab_only, vocab.model_path) == (True, path)
        pickle.loads(pickle.dumps(vocab)).close()
        uses: list[Callable[[], object]] = [
            lambda: vocab("a"),
            lambda: vocab.create_chat_completion(SUM),
            lambda: vocab.embed("a"),
            lambda: vocab.eval([1]),
            lambda: vocab.sample(),
            lambda: next(vocab.generate([1])),
            lambda: vocab.save_state(),
            lambda: vocab.scores,
            lambda: vocab.n_tokens,
            lambda: vocab.native,
            lambda: vocab.parse("a", int),
        ]
        for use in uses:
            with pytest.raises(ValidationError, match="vocab_only=True, without its weights"):
                use()
    with pytest.raises(ValidationError, match="closed"):
        vocab.tokenize(b"a")
    with pytest.raises(llama_cffi.ModelLoadError):
        Llama("nowhere.gguf", vocab_only=True)


def test_pickling_loads_it_again() -> None:
    with (
        Llama(str(model_path()), n_ctx=64, n_threads=1, seed=5, context_policy="shift") as llm,
        pickle.loads(pickle.dumps(llm)) as again,
    ):
        assert again.n_ctx() == llm.n_ctx()
        assert again.config == llm.config
        assert text_of(again(PROMPT, max_tokens=4)) == text_of(llm(PROMPT, max_tokens=4))


# --- token by token --------------------------------------------------------------------------


def test_tokens_are_bytes(llm: Llama) -> None:
    tokens = llm.tokenize("ä 1".encode())
    assert llm.detokenize(tokens) == "ä 1".encode()
    assert b"".join(llm.detokenize([t]) for t in tokens) == "ä 1".encode()
    end = llm.tokenize(b"<|im_end|>", add_bos=False, special=True)
    assert (len(end), llm.detokenize(end), llm.detokenize(end, special=True)) == (
        1, b"", b"<|im_end|>",
    )  # fmt: skip
    own = llm.tokenizer()
    assert own.decode(own.encode("a b")) == "a b"
    with pytest.raises(ValidationError, match="UTF-8"):
        llm.tokenize(b"\xff")
    alone = llama_cpp.LlamaTokenizer.from_ggml_file(str(model_path()))
    assert alone.tokenize(b"a b", special=False) == llm.tokenize(b"a b")


def test_another_tokenizer(llm: Llama) -> None:
    class Letters:
        """A tokenizer with the interface of transformers."""

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return llm.engine.tokenize(text[::-1], add_special_tokens)

        def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
            return llm.engine.detokenize(tokens)

    tokenizer = llama_cpp.LlamaHFTokenizer(Letters())
    with Llama(str(model_path()), n_ctx=64, n_threads=1, tokenizer=tokenizer) as other:
        assert other.tokenize(b"abc") == llm.tokenize(b"cba")
        assert other.detokenize(llm.tokenize(b"x y"), llm.tokenize(b"a")) == b"x y"
        turned = other("5 4 3", max_tokens=4, temperature=0)
        assert text_of(turned) == text_of(llm("3 4 5", max_tokens=4, temperature=0))


def test_eval_and_sample_give_the_completion(llm: Llama) -> None:
    tokens = llm.tokenize(PROMPT.encode(), special=True)
    llm.reset()
    llm.eval(tokens[:5])
    llm.eval(tokens[5:])
    assert llm.n_tokens == len(tokens) == len(llm.eval_tokens)
    assert llm.input_ids[: llm.n_tokens].tolist() == tokens
    found = []
    while (token := llm.sample(temp=0)) != llm.token_eos():
        found.append(token)
        llm.eval([token])
    assert llm.detokenize(found) == b"42"
    with pytest.raises(ValidationError):
        llm.eval([llm.n_vocab()])
    with pytest.raises(ValidationError, match="tfs_z"):
        llm.sample(tfs_z=0.5)
    llm.reset()
    with pytest.raises(ValidationError, match="eval"):
        llm.sample()


def test_sampling_after_an_earlier_token(llm: Llama) -> None:
    tokens = [*llm.tokenize(PROMPT.encode(), special=True), *llm.tokenize(b"42", add_bos=False)]
    llm.reset()
    llm.eval(tokens)
    expected = llm.scores[: len(tokens)].argmax(axis=1).tolist()
    assert [llm.sample(temp=0, idx=i) for i in range(len(tokens))] == expected
    assert llm.sample(temp=0, idx=-1) == llm.sample(temp=0) == expected[-1]
    assert llm.n_tokens == len(tokens)
    # Penalties count only what is before it, and processors see only that.
    seen: list[int] = []

    def see(ids: Any, logits: Any) -> Any:
        seen.append(len(ids))
        logits[expected[3]] = -np.inf
        return logits

    assert llm.sample(temp=0, idx=3, logits_processor=[see]) == llm.scores[3].argsort()[-2]
    assert llm.sample(temp=0, idx=3, grammar='root ::= "q"') == llm.tokenize(b"q", False)[0]
    assert llm.sample(temp=2, idx=3, top_k=2) in llm.scores[3].argsort()[-2:]
    # A part that is evaluated again has its new logits.
    llm.n_tokens = 5
    llm.eval(tokens[6:8])
    assert llm.sample(temp=0, idx=5) == llm.scores[5].argmax()
    with pytest.raises(ValidationError, match=r"idx=7 is outside 0\.\.6"):
        llm.sample(idx=7)
    state = llm.save_state()
    llm.reset()
    llm.load_state(state)
    assert llm.sample(temp=0, idx=2) == expected[2]


def test_sampling_needs_logits_that_are_kept() -> None:
    with Llama(str(model_path()), n_ctx=64, n_threads=1, logits_all=True) as llm:
        llm(PROMPT, max_tokens=1)  # keeps none
        with pytest.raises(ValidationError, match=r"first 0 and of the last.*logits_all=True"):
            llm.sample(idx=1)
    with Llama(str(model_path()), n_ctx=64, n_threads=1) as other:
        other.eval([5, 6, 7])
        assert other.sample(temp=0, idx=2) == other.sample(temp=0)
        with pytest.raises(ValidationError, match="logits_all=True"):
            other.sample(idx=1)


def test_a_prompt_that_is_too_long_is_refused_in_their_words() -> None:
    # llama_cpp/server/errors.py
    words = re.compile(r"Requested tokens \((\d+)\) exceed context window of (\d+)")
    with Llama(str(model_path()), n_ctx=256, n_threads=1, logits_all=True) as llm:
        n = len(llm.tokenize(b"7 " * 300))
        messages = [{"role": "user", "content": "7 " * 300}]
        uses: list[Callable[[], object]] = [
            lambda: llm("7 " * 300),
            lambda: llm(llm.tokenize(b"7 " * 300)),
            lambda: list(llm("7 " * 300, stream=True)),
            lambda: llm([5] * n),
            lambda: llm.create_chat_completion(messages),
            lambda: list(llm.create_chat_completion(messages, stream=True)),
        ]
        for use in uses:
            with pytest.raises(llama_cffi.ContextOverflowError, match="no room") as caught:
                use()
            found = words.match(str(caught.value))
            assert found is not None
            assert n <= int(found[1]) <= n + 16
            assert int(found[2]) == llm.n_ctx()
        assert llm([5] * 255, max_tokens=1)["usage"]["prompt_tokens"] == 255
        with pytest.raises(llama_cffi.ContextOverflowError, match=r"tokens \(256\)"):
            llm([5] * llm.n_ctx())


def test_bad_input_is_refused(llm: Llama) -> None:
    llm.reset()
    llm.eval([5, 6, 7])
    calls: list[Any] = [
        lambda: llm.tokenize(5),  # type: ignore[arg-type]
        lambda: llm.detokenize([99999]),
        lambda: llm.eval("abc"),  # type: ignore[arg-type]
        lambda: llm.eval([-1]),
        lambda: llm.sample(temp=-1),
        lambda: llm.sample(top_p=7),
        lambda: setattr(llm, "n_tokens", -1),
        lambda: setattr(llm, "n_tokens", 4),
        lambda: llm.generate([1.5]),
        lambda: llm.create_chat_completion("What?"),  # type: ignore[arg-type]
        lambda: llm.create_chat_completion([{"content": "?"}]),
        lambda: llm.create_chat_completion(SUM, functions=[{"name": "a b"}]),
        lambda: llm.create_chat_completion(SUM, tools=[{}]),
        lambda: llm.create_chat_completion(SUM, [FUNCTION], {"name": "other"}),
        lambda: llm("a", grammar=5),
        lambda: llm("a", seed="x"),  # type: ignore[arg-type]
        lambda: llm("a", logprobs=-1, echo=True),
        lambda: llm([99999]),
        lambda: llm.embed(5),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(llama_cffi.LlamaError):
            call()
    with pytest.raises(TypeError):
        llm.generate([1], no_such_argument=1)
    assert llm.eval_tokens or llm.n_tokens == 0
    assert text_of(llm(PROMPT, temperature=0)) == "42"


def test_scores_are_the_logits_of_every_token(llm: Llama) -> None:
    tokens = llm.tokenize(PROMPT.encode(), special=True)
    llm.reset()
    llm.eval(tokens)
    rows = llm.scores[: len(tokens)]
    assert len(llm.eval_logits) == len(tokens)
    with Llama(str(model_path()), n_ctx=512, n_threads=1) as other:
        for i in (0, 7, len(tokens) - 1):
            other.n_tokens = i
            other.eval(tokens[i : i + 1])
            assert other.n_tokens == i + 1
            np.testing.assert_allclose(other.scores[i], rows[i], atol=2e-2)
            assert len(other.eval_logits) == 1
            other.eval(tokens[i + 1 :])
    logprobs = Llama.logits_to_logprobs(rows)
    np.testing.assert_allclose(np.exp(logprobs).sum(axis=-1), 1, rtol=1e-4)


def test_generate_yields_tokens_without_end(llm: Llama) -> None:
    tokens = llm.tokenize(PROMPT.encode(), special=True)
    first = list(islice(llm.generate(tokens, temp=0), 6))
    assert llm.detokenize(first[: first.index(llm.token_eos())]) == b"42"
    assert list(islice(llm.generate(tokens, temp=0), 6)) == first
    # Other calls between two steps change nothing.
    found = []
    for token in islice(llm.generate(tokens, temp=0), 6):
        found.append(token)
        llm("1 2 3", max_tokens=2)
    assert found == first
    # Continuing the evaluated tokens; sent tokens follow.
    llm.reset()
    llm.eval(tokens[:-2])
    assert next(llm.generate(tokens[-2:], temp=0, reset=False)) == first[0]
    run = llm.generate(tokens, temp=0)
    next(run)
    run.send(llm.tokenize(b"7", add_bos=False))
    assert llm.eval_tokens[-1] == llm.tokenize(b"7", add_bos=False)[0]
    run.close()
    ended = llm.generate(
        tokens, temp=0, stopping_criteria=[lambda ids, _: len(ids) >= len(tokens) + 1]
    )
    assert list(ended) == first[:1]
    seven = llm.tokenize(b"7", add_bos=False)[0]

    def only_seven(ids: Any, scores: Any) -> Any:
        scores[:] = -np.inf
        scores[seven] = 0
        return scores

    processors = llama_cpp.LogitsProcessorList([only_seven])
    assert list(islice(llm.generate(tokens, logits_processor=processors), 3)) == [seven] * 3
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "77" "7"*', verbose=False)
    assert set(llm.detokenize(list(islice(llm.generate(tokens, grammar=grammar), 3)))) == {ord("7")}
    with pytest.raises(ValidationError):
        next(llm.generate([]))
    assert llm.generate("1 2 3", 4, temperature=0) == text_of(llm("1 2 3", None, 4, 0))


def test_states(llm: Llama) -> None:
    tokens = llm.tokenize(PROMPT.encode(), special=True)
    llm.reset()
    llm.eval(tokens)
    state = llm.save_state()
    expected = llm.sample(temp=0)
    assert (state.n_tokens, state.llama_state_size) == (len(tokens), len(state.llama_state))
    llm("1 2 3", max_tokens=4)
    llm.load_state(pickle.loads(pickle.dumps(state)))
    assert (llm.n_tokens, llm.sample(temp=0)) == (len(tokens), expected)
    np.testing.assert_array_equal(llm.scores[: len(tokens) - 1], state.scores[:-1])
    state.llama_state = state.llama_state[:-1]
    with pytest.raises(ValidationError):
        llm.load_state(state)


# --- completions -----------------------------------------------------------------------------


def test_completion_by_position(llm: Llama) -> None:
    # prompt, suffix, max_tokens, temperature, top_p, min_p, typical_p, logprobs, echo, stop
    answer = llm(PROMPT, None, 8, 0.0, 0.95, 0.05, 1.0, 2, True, ["2"])
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (PROMPT + "4", "stop")


@pytest.mark.parametrize("logits_all", [False, True])
def test_log_probabilities_of_the_prompt(logits_all: bool) -> None:
    with Llama(str(model_path()), n_ctx=256, n_threads=1, logits_all=logits_all) as llm:
        answer = llm(PROMPT, max_tokens=2, temperature=0, logprobs=3, echo=True)
        found, text = answer["choices"][0]["logprobs"], answer["choices"][0]["text"]
        assert text == PROMPT + "42"
        assert "".join(found["tokens"]) == text
        for offset, token in zip(found["text_offset"], found["tokens"], strict=True):
            assert text[offset:].startswith(token)
        assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
        tokens = llm.tokenize(PROMPT.encode(), special=True)
        with llama_cffi.Scorer(llm.model, n_threads=1) as scorer:
            expected = scorer.logprobs(tokens)
        scored = found["token_logprobs"][1 : len(tokens)]
        np.testing.assert_allclose(scored, expected, atol=2e-2)
        assert all(len(top) in (3, 4) for top in found["top_logprobs"][1:])


@pytest.mark.parametrize("prompt", [PROMPT, "é 😀 ☃ 17", "<|im_start|>user\né"])
def test_text_offset_with_and_without_echo(prompt: str) -> None:
    with Llama(str(model_path()), n_ctx=256, n_threads=1) as llm:
        for grammar in (None, llama_cffi.LlamaGrammar.from_string('root ::= "é😀1"')):
            options: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "grammar": grammar}
            options["ignore_eos"] = grammar is None
            plain = llm(prompt, logprobs=1, **options)["choices"][0]
            echoed = llm(prompt, logprobs=1, echo=True, **options)["choices"][0]
            assert echoed["text"] == prompt + plain["text"]
            offsets = plain["logprobs"]["text_offset"]
            assert offsets[0] == len(prompt)
            assert echoed["logprobs"]["text_offset"][-len(offsets) :] == offsets
            # Each token is at the characters that are complete before it.
            vocab, text = llm.model.vocab, echoed["text"].encode()
            tokens = [*llm.tokenize(prompt.encode(), special=True)]
            ends = np.cumsum([len(vocab.token_to_piece(t, True)) for t in tokens])
            expected = [len(text[:n].decode("utf-8", "ignore")) for n in [0, *ends[:-1]]]
            assert echoed["logprobs"]["text_offset"][: len(tokens)] == expected


def test_max_tokens_of_zero_or_less_means_no_limit(llm: Llama) -> None:
    for limit in (0, -1, None):
        assert text_of(llm(PROMPT, max_tokens=limit, temperature=0)) == "42"


def test_seeds(llm: Llama) -> None:
    def text(**options: Any) -> str:
        return text_of(
            llm("1 2", max_tokens=12, temperature=50.0, min_p=0, top_k=0, top_p=1.0, **options)
        )

    llm.set_seed(7)
    first = [text() for _ in range(3)]
    assert len(set(first)) == 3
    llm.set_seed(7)
    assert [text(), text(), text(seed=8)] == [*first[:2], text(seed=8)]
    assert text() == first[2]  # a call's own seed is not of the sequence
    # The seeds are those that llama-cpp-python draws.
    seed = 7
    for expected in first:
        seed = random.Random(seed).randint(0, 2**32)
        assert text(seed=seed) == expected
    llm.set_seed(llama_cpp.LLAMA_DEFAULT_SEED)
    assert len({text() for _ in range(3)}) > 1
    for wrong in (-2, 2**32, 1.5, "x"):
        with pytest.raises(ValidationError, match="seed"):
            llm.set_seed(wrong)  # type: ignore[arg-type]
    llm.set_seed(7)


def test_a_state_continues_its_sequence_of_seeds(llm: Llama) -> None:
    def text() -> str:
        return text_of(llm("1 2", max_tokens=12, temperature=50.0, min_p=0, top_k=0, top_p=1.0))

    llm.set_seed(7)
    text()
    state = llm.save_state()
    expected = text()
    llm.set_seed(1)
    llm.load_state(state)
    assert text() == expected


def test_token_by_token_draws_from_the_sequence(llm: Llama) -> None:
    def sampled() -> list[int]:
        llm.reset()
        llm.eval(llm.tokenize(b"1 2"))
        return [llm.sample(temp=50.0, min_p=0, top_k=0, top_p=1.0) for _ in range(8)]

    def generated() -> list[int]:
        return [
            *islice(llm.generate(llm.tokenize(b"1 2"), temp=50.0, min_p=0, top_k=0, top_p=1.0), 8)
        ]

    for draw in (sampled, generated):
        llm.set_seed(7)
        first = [draw() for _ in range(2)]
        assert first[0] != first[1]
        llm.set_seed(7)
        assert [draw() for _ in range(2)] == first
    assert len(set(sampled())) > 1


def test_processors_and_criteria_in_lists(llm: Llama) -> None:
    minimum = llama_cpp.MinTokensLogitsProcessor(5, llm.token_eos())
    answer = llm(
        PROMPT, max_tokens=8, temperature=0,
        logits_processor=llama_cpp.LogitsProcessorList([minimum]),
    )  # fmt: skip
    assert answer["usage"]["completion_tokens"] >= 5
    assert text_of(answer).startswith("42")
    ended = llama_cpp.StoppingCriteriaList([lambda ids, logits: True])
    assert text_of(llm(PROMPT, temperature=0, stopping_criteria=ended)) == ""


def test_last_n_tokens_size_limits_the_penalties() -> None:
    def last(n: int) -> int:
        with Llama(str(model_path()), n_ctx=256, n_threads=1, last_n_tokens_size=n) as llm:
            never = dict.fromkeys(map(str, llm.model.vocab.eog_tokens), -float("inf"))
            answer = llm(
                "7 7 7 7 7 7", max_tokens=40, temperature=0, repeat_penalty=9.0, logit_bias=never
            )
            tokens = llm.tokenize(text_of(answer).encode(), add_bos=False)
            return len(set(tokens))

    assert last(0) < last(64)


def test_fill_in_the_middle_in_either_order(tmp_path: Path) -> None:
    path = write_tiny(
        tmp_path / "fim.gguf", control=("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    )
    for spm in (False, True):
        with Llama(str(path), n_ctx=64, n_threads=1, spm_infill=spm) as llm:
            vocab = llm.model.vocab
            assert None not in (vocab.fim_pre, vocab.fim_suf, vocab.fim_mid)
            llm.create_completion("ab", suffix="yz", max_tokens=1)
            before = [vocab.fim_pre, *llm.tokenize(b"ab", add_bos=False)]
            after = [vocab.fim_suf, *llm.tokenize(b"yz", add_bos=False)]
            expected = [*(after + before if spm else before + after), vocab.fim_mid]
            assert list(llm.eval_tokens)[-len(expected) :] == expected


def test_tail_free_sampling_is_refused(llm: Llama) -> None:
    for call in (
        lambda: llm("a", tfs_z=0.9),
        lambda: llm.create_chat_completion(SUM, tfs_z=0.9),
    ):
        with pytest.raises(ValidationError, match="tfs_z"):
            call()


# --- conversations ---------------------------------------------------------------------------


def test_chat_by_position(llm: Llama) -> None:
    # messages, functions, function_call, tools, tool_choice, temperature
    answer = llm.create_chat_completion(SUM, None, None, None, None, 0.0)
    assert answer["choices"][0]["message"]["content"] == "42"
    chunks = list(llm.create_chat_completion(SUM, temperature=0, stream=True))
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks) == "42"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("call", [None, "auto", {"name": "get_weather"}])
def test_functions(llm: Llama, call: Any, stream: bool) -> None:
    answer = llm.create_chat_completion(
        WEATHER, [FUNCTION], call, temperature=0, stream=stream, max_tokens=64
    )
    if stream:
        calls = [c["choices"][0]["delta"].get("function_call") for c in answer]
        parts = [c for c in calls if c]
        name, arguments = parts[0]["name"], "".join(p["arguments"] for p in parts)
    else:
        message = answer["choices"][0]["message"]
        name, arguments = message["function_call"]["name"], message["function_call"]["arguments"]
        assert message["tool_calls"][0]["function"] == message["function_call"]
    assert (name, json.loads(arguments)) == ("get_weather", {"city": "Paris"})


def test_results_of_functions_become_results_of_tools(llm: Llama) -> None:
    call = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    result = {"name": "get_weather", "content": "sunny"}
    old = [
        *WEATHER,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", **result},
    ]
    tool_call = {"id": "call_1", "type": "function", "function": call}
    new = [
        *WEATHER,
        {"role": "assistant", "content": None, "tool_calls": [tool_call]},
        {"role": "tool", "tool_call_id": "call_1", **result},
    ]
    tools = [{"type": "function", "function": FUNCTION}]
    answers = [
        llm.create_chat_completion(old, [FUNCTION], temperature=0, max_tokens=16),
        llm.create_chat_completion(new, tools=tools, temperature=0, max_tokens=16),
    ]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert "sunny" in llm.detokenize(list(llm.eval_tokens)).decode()


def test_a_tool_by_its_name(llm: Llama) -> None:
    tools = [{"type": "function", "function": FUNCTION}]
    answer = llm.create_chat_completion(
        SUM, tools=tools, tool_choice="get_weather", temperature=0, max_tokens=80
    )
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert "function_call" not in answer["choices"][0]["message"]


def test_a_schema_forbids_other_properties(llm: Llama) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [41, 42]}}, "required": ["n"]}
    for response_format in (
        {"type": "json_object", "schema": schema},
        {"type": "json_schema", "json_schema": {"schema": schema}},
    ):
        for seed in range(3):
            answer = llm.create_chat_completion(
                SUM, response_format=response_format, temperature=2.0, seed=seed, max_tokens=60
            )
            value = json.loads(answer["choices"][0]["message"]["content"])
            assert value in ({"n": 41}, {"n": 42})


def test_parallel_calls() -> None:
    with Llama(str(model_path()), n_ctx=1024, n_threads=1, parallel=4) as llm:

        def ask(n: int) -> str:
            messages = [{"role": "user", "content": f"What is 17 + {n}?"}]
            answer = llm.create_chat_completion(messages, temperature=0)
            return str(answer["choices"][0]["message"]["content"])

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ask, range(20, 28))) == [str(17 + n) for n in range(20, 28)]
        for call in (
            lambda: llm.eval([1]), lambda: llm.n_tokens, lambda: llm.sample(), lambda: llm.scores,
            lambda: next(llm.generate([1])), lambda: llm.save_state(),
        ):  # fmt: skip
            with pytest.raises(ValidationError, match="many requests"):
                call()


# --- what llama-cpp-python does not have -----------------------------------------------------


def test_seeds_of_the_methods_of_llama_cffi(llm: Llama) -> None:
    def text() -> str:
        return llm.generate("1 2", 12, temperature=50.0, min_p=0, top_k=0, top_p=1.0)

    llm.set_seed(7)
    first = text()
    assert text() != first
    llm.set_seed(8)
    assert text() != first
    assert llm.create_chat_completion(SUM, temperature=0)["choices"][0]["message"]
    llm.set_seed(7)
    assert text() == first
    llm.set_seed(7)
    stream = llm.generate_stream("1 2", 12, temperature=50.0, min_p=0, top_k=0, top_p=1.0)
    assert "".join(stream) == first


def test_methods_of_llama_cffi(llm: Llama) -> None:
    assert isinstance(llm.native, llama_cffi.Llama)
    assert llm.parse("What is 17 + 25?", int, temperature=0, max_tokens=8) == 42
    assert (llm.renderer, llm.chat, llm.embedder, llm.sampling) == (
        llm.native.renderer, llm.native.chat, llm.native.embedder, None,
    )  # fmt: skip

    async def ask() -> str:
        answer = await llm.create_chat_completion_async(SUM, temperature=0)
        stream = await llm.create_completion_async(PROMPT, stream=True, temperature=0)
        chunks = [chunk["choices"][0]["text"] async for chunk in stream]
        return f"{answer['choices'][0]['message']['content']} {''.join(chunks)}"

    assert asyncio.run(ask()) == "42 42"
    llm.reset()
    llm.eval([5, 6, 7])
    state = llm.get_state()
    assert (llm.kv_cache_seq_pos_max(), llm.kv_cache_seq_rm(0, 1, -1), llm.n_tokens) == (2, True, 1)
    assert (llm.set_state(state), llm.n_tokens) == (3, 3)
    llm.kv_cache_clear()
    assert llm.n_tokens == 0


class Louder(Llama):
    """Overrides a method that is delegated."""

    def parse(self, *args: Any, **options: Any) -> Any:
        return f"{super().parse(*args, **options)}!"


def test_subclasses_override_methods_of_llama_cffi() -> None:
    with Louder(str(model_path()), n_ctx=256, n_threads=1) as llm:
        assert llm.parse("What is 17 + 25?", int, temperature=0, max_tokens=8) == "42!"


# --- embeddings ------------------------------------------------------------------------------


def test_embeddings_of_token_ids() -> None:
    with Llama(str(model_path()), n_ctx=64, n_threads=1, embedding=True) as llm:
        texts = ["What is 17 + 25?", "a b c"]
        ids = [llm.tokenize(text.encode()) for text in texts]
        expected = llm.embed(texts)
        assert llm.embed(ids) == expected
        assert llm.embed([texts[0], ids[1]]) == expected
        assert llm.embed(ids[0]) == pytest.approx(expected[0], abs=1e-2)
        assert llm.embed(np.array(ids[1]).tolist(), return_count=True)[1] == len(ids[1])
        assert llm.embed([]) == llm.native.embed([]) == []
        for given in (ids, texts, ids[0], texts[0], [texts[0], ids[1]]):
            for face in (llm, llm.native):
                answer = face.create_embedding(given)
                n = sum(map(len, ids)) if len(answer["data"]) == 2 else len(ids[0])
                assert answer["usage"] == {"prompt_tokens": n, "total_tokens": n}
                assert answer["data"][0]["index"] == 0
        for wrong, message in (
            ([[]], "no token"),
            ([[1], []], "text 1 has no token"),
            ([10**6], "token=1000000"),
            ([-1], "token=-1"),
            ([1, "a"], "token='a'"),
            ([["a"]], "token='a'"),
            ([None], "text 0 must be a str or a list of token ids"),
        ):
            for face in (llm, llm.native):
                with pytest.raises(ValidationError, match=message):
                    face.embed(wrong)


def test_embeddings(llm: Llama) -> None:
    with Llama(
        str(model_path()), n_ctx=64, n_threads=1, embedding=True,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_NONE,
    ) as none:  # fmt: skip
        rows, n = none.embed("a b c", return_count=True)
        assert np.shape(rows) == (n, 192)
        assert none.pooling_type() == llama_cpp.LLAMA_POOLING_TYPE_NONE
    # This model defines no pooling.
    with Llama(str(model_path()), n_ctx=64, n_threads=1, embedding=True) as mean:
        assert mean.pooling_type() == llama_cpp.LLAMA_POOLING_TYPE_MEAN
        row = mean.embed("a b c")
        np.testing.assert_allclose(row, np.mean(rows, axis=0), atol=2e-2)
        assert np.linalg.norm(mean.embed("a b c", normalize=True)) == pytest.approx(1, abs=1e-5)
        answer = mean.create_embedding(["a b c", "d"], model="me")
        assert [len(d["embedding"]) for d in answer["data"]] == [192, 192]
        assert answer["data"][0]["embedding"] == pytest.approx(row, abs=2e-2)
        assert (answer["model"], answer["usage"]["total_tokens"]) == ("me", n + 1)
        long = "1 " * 3000
        _, cut = mean.embed(long, return_count=True)
        assert cut == mean.model.n_ctx_train
        with pytest.raises(llama_cffi.ContextOverflowError):
            mean.embed(long, truncate=False)
    with (
        Llama(str(model_path()), n_ctx=64, n_threads=1) as other,
        pytest.raises(ValidationError, match="embeddings=True"),
    ):
        other.embed("a")


@pytest.mark.parametrize("build", [OLD, MIDDLE])
def test_on_older_builds(child: Child, build: str) -> None:
    result = child(
        """
        import sys
        from itertools import islice
        import llama_cffi.llama_cpp as llama_cpp
        prompt = sys.argv[2]
        for logits_all in (False, True):
            with llama_cpp.Llama(sys.argv[1], n_threads=1, logits_all=logits_all) as llm:
                tokens = llm.tokenize(prompt.encode(), special=True)
                print(llm.detokenize(list(islice(llm.generate(tokens, temp=0), 2))).decode())
                state = llm.save_state()
                llm.reset()
                llm.load_state(state)
                print(llm(prompt, temperature=0)["choices"][0]["text"])
        print(llama_cpp.llama_supports_mmap(), llama_cpp.LLAMA_TOKEN_ATTR_CONTROL)
        """,
        model_path(),
        PROMPT,
        LLAMA_CFFI_BUILD=build,
    )
    assert (result.stdout.split(), result.stderr) == (["42"] * 4 + ["True", "8"], "")
