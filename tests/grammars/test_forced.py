"""Forced tokens, the only ones that a grammar allows: skipping them changes nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.odd_models import write_recurrent, write_windowed
from support.rounding import EXACT

from llama_cffi import DecodeAbortedError, Engine, Llama, LlamaGrammar, SamplingParams
from llama_cffi.binding import Candidates
from llama_cffi.demo import model_path
from llama_cffi.grammars import Constraint

PERSON = LlamaGrammar.from_json_schema(
    {
        "type": "object",
        "properties": {
            "given_name": {"type": "string", "maxLength": 8},
            "year_of_birth": {"type": "integer", "minimum": 1900, "maximum": 2020},
            "favourite_colour": {"enum": ["red", "green", "blue"]},
        },
        "required": ["given_name", "year_of_birth", "favourite_colour"],
        "additionalProperties": False,
    }
)
LINES = LlamaGrammar.from_regex(r"(the number is [0-9]{1,2}, not [a-z]{1,3}; ){3}")
GRAMMARS = {
    "schema": PERSON,
    "regex": LINES,
    "choices": LlamaGrammar.from_choices(["a fox in a box", "a fox with socks", "a box"]),
    "lark": LlamaGrammar.from_lark('start: "on " day " in " month\nday: /[0-9]/\nmonth: /[a-f]x/'),
    "gbnf": LlamaGrammar.from_string(
        'root ::= "on " [0-9] " in " month ("(" root ")")?\nmonth ::= [a-f] "xyz"'
    ),
}
SAMPLED: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "repeat_penalty": 1.3},
    {"temperature": 1.5, "seed": 1},
    {"temperature": 1.2, "seed": 2, "xtc_probability": 0.5, "dry_multiplier": 0.8},
    {"temperature": 1.2, "seed": 3, "mirostat_mode": 1},
    {"temperature": 1.2, "seed": 4, "mirostat_mode": 2},
    {"temperature": 1.2, "seed": 5, "samplers": "top_k;adaptive_p", "adaptive_target": 0.4},
]


class Counted:
    """An engine that counts its decodes."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.engine = Engine(path, **{"n_ctx": 512, "n_threads": 1, **EXACT, **options})
        self.n_decodes = 0
        decode = self.engine.context.decode

        def counted(batch: Any) -> None:
            self.n_decodes += 1
            decode(batch)

        monkeypatch.setattr(self.engine.context, "decode", counted)
        self.prompt = self.engine.format_prompt("Who is Bob?")

    def __call__(self, max_tokens: int = 150, **options: Any) -> list[int]:
        self.n_decodes = 0
        return self.engine.generate_tokens(self.prompt, max_tokens, **{"json_stop": (), **options})


@pytest.fixture
def run(demo_f32: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    counted = Counted(demo_f32, monkeypatch)
    with counted.engine:
        yield counted


@pytest.mark.parametrize("grammar", GRAMMARS)
@pytest.mark.parametrize("options", SAMPLED)
def test_same_tokens_with_fewer_decodes(
    run: Counted, grammar: str, options: dict[str, Any]
) -> None:
    """The distribution is the same, and so are the draws of every sampler."""
    params = SamplingParams(structured=GRAMMARS[grammar], **options)
    plain = run(sampling=params, skip_forced=False)
    stats, n_plain = run.engine.stats, run.n_decodes
    assert stats.n_forced == 0
    assert n_plain == len(plain) + 1
    assert run(sampling=params) == plain
    skipped = run.engine.stats
    assert skipped.n_forced > 0
    assert run.n_decodes < n_plain
    assert (skipped.finish_reason, skipped.n_generated) == (stats.finish_reason, len(plain))
    # The prompt's decode is not needed if the first token is forced.
    assert run.n_decodes <= 1 + skipped.n_generated - skipped.n_forced + 1


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_forced_token_is_the_only_one_allowed(run: Counted, grammar: str) -> None:
    model, rng = run.engine.model, np.random.default_rng(0)
    n_forced = 0
    for _ in range(5):
        constraint = Constraint(model, GRAMMARS[grammar])
        while not constraint.ended:
            forced = constraint.forced_tokens()
            candidates = Candidates(model)
            candidates.fill(np.zeros(model.vocab.n_tokens, np.float32))
            constraint.apply(candidates)
            array = candidates.array
            allowed = array["id"][array["logit"] == 0].tolist()
            if forced:
                assert allowed == forced[:1]
                n_forced += 1
            allowed = [t for t in allowed if not model.vocab.is_eog(t)]
            constraint.accept(int(rng.choice(allowed)))
    assert n_forced > 10


def test_forced_tokens_are_not_decoded_one_by_one(run: Counted) -> None:
    text = "nobody expects it"
    for max_tokens, reason in ((100, "eog"), (3, "length")):
        tokens = run(max_tokens, structured=LlamaGrammar.from_choices([text]))
        assert run.engine.stats.finish_reason == reason
        # A choice may begin with more than one token.
        assert text.startswith(run.engine.detokenize(tokens))
        assert run.engine.stats.n_forced >= len(tokens) - 1
        assert run.n_decodes == 1 + len(tokens) - run.engine.stats.n_forced
    tokens = run(grammar='root ::= "nobody"')
    assert run.engine.stats.n_forced == len(tokens)


def test_limits_and_stop_strings_within_forced_tokens(run: Counted) -> None:
    whole = run(structured=PERSON, temperature=0)
    for max_tokens in range(1, len(whole)):
        assert run(max_tokens, structured=PERSON, temperature=0) == whole[:max_tokens]
        assert run.engine.stats.finish_reason == "length"
    engine, options = run.engine, {"structured": PERSON, "temperature": 0, "json_stop": ()}
    text = engine.generate("Who is Bob?", **options)
    assert "".join(engine.stream("Who is Bob?", **options)) == text
    for stop in ("of_b", "year_of_birth", "ourite_c"):
        stopped = engine.generate("Who is Bob?", stop=stop, **options)
        assert stopped == text[: text.index(stop)]
        assert engine.stats.finish_reason == "stop"
    ended = engine.generate("Who is Bob?", **{**options, "json_stop": ("year_of_birth",)})
    assert (ended, engine.stats.finish_reason) == (text, "json")


def test_leaving_or_cancelling_within_forced_tokens(run: Counted) -> None:
    engine, expected = run.engine, run(structured=PERSON, temperature=0)
    for n in range(1, len(expected)):
        steps = engine.steps(run.prompt, 100, structured=PERSON, temperature=0)
        assert [next(steps)[0] for _ in range(n)] == expected[:n]
        if n % 2:
            steps.close()
            continue
        engine.cancel()
        with pytest.raises(DecodeAbortedError):
            list(steps)
    assert run(structured=PERSON, temperature=0) == expected
    assert engine.stats.n_reused == len(run.prompt) - 1


@pytest.mark.parametrize("policy", ["shift", "error"])
def test_forced_tokens_at_the_end_of_the_context(
    demo_f32: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    run = Counted(demo_f32, monkeypatch, n_ctx=256, safety=40)
    grammar = LlamaGrammar.from_regex(r"(the number is [0-9]{1,2}, not [a-z]{1,3}; ){60}")
    with run.engine:
        for seed in range(3):
            options = {"structured": grammar, "seed": seed, "context_policy": policy}
            plain = run(400, skip_forced=False, **options)
            shifted, reason = run.engine.stats.n_shifted, run.engine.stats.finish_reason
            assert run(400, **options) == plain
            assert run.engine.stats.n_shifted == shifted
            assert run.engine.stats.finish_reason == reason
            assert (shifted > 0, reason) == (
                (True, "length") if policy == "shift" else (False, "context")
            )


def test_logits_of_every_token_if_needed(run: Counted, demo_f32: Path) -> None:
    lengths: list[int] = []
    processors = [lambda ids, scores: lengths.append(len(ids))]
    tokens = run(structured=PERSON, temperature=0, logits_processor=processors)
    n = len(run.prompt)
    assert lengths == list(range(n, n + len(tokens) + 1))  # the end is sampled too
    with Llama(demo_f32, n_ctx=512, n_threads=1, **EXACT) as llm:
        options = {"grammar": PERSON, "temperature": 1.2, "seed": 7, "max_tokens": 150}
        plain = llm("Who is Bob?", **options)["choices"][0]
        assert llm.engine.stats.n_forced > 0
        scored = llm("Who is Bob?", logprobs=1, **options)["choices"][0]
        assert llm.engine.stats.n_forced == 0
        assert scored["text"] == plain["text"]
        assert "".join(scored["logprobs"]["tokens"]) == plain["text"]
        assert (
            len(set(scored["logprobs"]["token_logprobs"])) > len(scored["logprobs"]["tokens"]) // 2
        )
        seen: list[int] = []
        criterion = lambda ids, logits: seen.append(len(ids))  # noqa: E731
        judged = llm("Who is Bob?", stopping_criteria=criterion, **options)["choices"][0]
        assert judged["text"] == plain["text"]
        assert len(seen) >= len(scored["logprobs"]["tokens"])


@pytest.mark.parametrize("write", [write_recurrent, write_windowed])
def test_other_memories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    """Tokens are never removed again, so recurrent models work too."""
    run = Counted(write(tmp_path / "odd.gguf"), monkeypatch, n_ctx=256)
    with run.engine:
        for seed in range(3):
            plain = run(structured=LINES, seed=seed, skip_forced=False)
            assert run(structured=LINES, seed=seed) == plain
            assert run.engine.stats.n_forced > len(plain) // 2


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_on_every_build(child: Child, demo_f32: Path, build: str) -> None:
    code = """
        import json, sys
        from llama_cffi import Engine, LlamaGrammar
        grammar = LlamaGrammar.from_regex(r"(the number is [0-9]{1,2}, not [a-z]{1,3}; ){3}")
        with Engine(sys.argv[1], n_ctx=512, n_threads=1, **json.loads(sys.argv[2])) as engine:
            for options in ({"temperature": 0}, {"seed": 1, "temperature": 1.5}):
                options = {"structured": grammar, **options}
                plain = engine.generate("Hi", skip_forced=False, **options)
                assert engine.generate("Hi", **options) == plain
                print(engine.stats.n_forced > 10)
    """
    exact = {} if build == OLD else EXACT  # without an F32 cache; compiled for one kind of CPU
    result = child(code, demo_f32, json.dumps(exact), LLAMA_CFFI_BUILD=build)
    assert (result.stderr, result.stdout) == ("", "True\nTrue\n")


def test_seeds_of_several_answers_wrap_around() -> None:
    """Each answer has its own valid seed."""
    with Llama(model_path(), n_ctx=256, n_threads=1) as llm:
        options = {"max_tokens": 8, "temperature": 2.0, "n": 3}
        largest = llm("A fox", seed=2**32 - 2, **options)["choices"]
        first = llm("A fox", seed=0, **options)["choices"]
    assert [choice["text"] for choice in largest[1:]] == [c["text"] for c in first[:2]]
