from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.rounding import ever_shorter
from support.schemas import REFUSED, SCHEMAS
from support.tiny_gguf import write_tiny

from llama_cffi import Engine, SamplerChain, SamplingParams
from llama_cffi.binding import Candidates, Grammar, Model
from llama_cffi.demo import model_path
from llama_cffi.errors import GenerationError, GrammarError, ValidationError
from llama_cffi.generation.sampler_chains import build_chain
from llama_cffi.grammars import Constraint, LlamaGrammar
from llama_cffi.grammars.dates import DATE_PATTERNS

HOT: dict[str, Any] = {
    "temperature": 1.5,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "json_stop": (),
    # The small model repeats itself, so recursive documents would not end.
    "repeat_penalty": 1.0,
    "dry_multiplier": 1.0,
    "dry_sequence_breakers": (),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(model_path(), n_ctx=1024, n_threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def model(engine: Engine) -> Model:
    return engine.model


@pytest.mark.parametrize("name", SCHEMAS)
def test_documents_are_valid(engine: Engine, name: str) -> None:
    schema = SCHEMAS[name]
    grammar = LlamaGrammar.from_json_schema(schema)
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    finished = 0
    for seed, bias in enumerate(ever_shorter(engine.model.vocab)):
        options = {"seed": seed, "structured": grammar, "logit_bias": bias, **HOT}
        text = engine.generate("Answer", n_predict=400, **options)
        if engine.stats.finish_reason == "eog":
            finished += 1
            validator.validate(json.loads(text))
        if finished == 3:
            return
    pytest.fail(f"{finished} of 8 documents came to an end")


def test_there_are_enough_schemas() -> None:
    assert len(SCHEMAS) >= 150


def test_date_pattern_equals_the_calendar() -> None:
    for year in range(10_000):
        for day in ("01-31", "02-28", "02-29", "10-01", "12-30"):
            text = f"{year:04d}-{day}"
            try:
                is_real = bool(datetime.date.fromisoformat(text))
            except ValueError:
                is_real = False
            assert bool(re.search(DATE_PATTERNS["date"], text)) == is_real, text


@pytest.mark.parametrize(
    ("name", "text", "is_real"),
    [
        ("date", "2024-02-29", True),
        ("date", "2023-02-29", False),
        ("date", "2023-04-31", False),
        ("date", "0000-01-01", False),
        ("date-time", "2000-02-29T23:59:59.5Z", True),
        ("date-time", "1900-02-29T23:59:59Z", False),
        ("date-time", "2023-01-01T10:00:60Z", False),
        ("time", "10:00:59+01:00", True),
        ("time", "10:00:60Z", False),
    ],
)
def test_dates_and_times_exist(model: Model, name: str, text: str, is_real: bool) -> None:
    schemas = [{"type": "string", "format": name}, {"type": "string", "format": name, "allOf": []}]
    for schema in schemas:
        constraint = Constraint(model, LlamaGrammar.from_json_schema({"properties": {"d": schema}}))
        try:
            for token in model.vocab.tokenize(json.dumps({"d": text}), False):
                constraint.accept(token)
        except ValidationError:
            assert not is_real
        else:
            assert constraint.complete == is_real


def test_constants_that_look_like_dates(engine: Engine) -> None:
    constant = {"format": "date", "properties": {"x": {"format": "time"}}}
    for schema in ({"const": constant}, {"enum": [constant]}):
        grammar = LlamaGrammar.from_json_schema(schema)
        text = engine.generate("Answer", n_predict=800, structured=grammar, json_stop=())
        assert json.loads(text) == constant


@pytest.mark.parametrize(("schema", "says"), REFUSED, ids=str)
def test_unenforceable_schemas_are_refused_with_their_path(schema: Any, says: str) -> None:
    with pytest.raises(GrammarError, match=re.compile(says, re.S)):
        LlamaGrammar.from_json_schema(schema)


def test_equal_descriptions_are_equal_grammars(tmp_path: Path) -> None:
    path = tmp_path / "yes.gbnf"
    path.write_text('root ::= "ü"', encoding="utf-8")
    assert LlamaGrammar.from_file(path) == LlamaGrammar.from_string('root ::= "ü"')
    schema = {"type": "object", "properties": {}}
    made = [LlamaGrammar.from_json_schema(s) for s in (schema, json.dumps(schema))]
    assert len(set(made)) == 1
    assert made[0] != LlamaGrammar.json_object()


@pytest.mark.parametrize(
    "make",
    [
        lambda: LlamaGrammar("ebnf", "x"),
        lambda: LlamaGrammar("regex", 5),  # type: ignore[arg-type]
        lambda: LlamaGrammar.from_string("root ::= nowhere"),
        lambda: LlamaGrammar.from_string('start ::= "a"'),
        lambda: LlamaGrammar.from_string("root ::= root"),
        lambda: LlamaGrammar.from_regex("(a"),
        lambda: LlamaGrammar.from_regex("a(?=b)"),
        lambda: LlamaGrammar.from_regex("a\ud800"),
        lambda: LlamaGrammar.from_lark("start: nowhere"),
        lambda: LlamaGrammar.from_lark('x: "a"'),
        lambda: LlamaGrammar.from_lark("start: " + "(" * 10_000),
        lambda: LlamaGrammar.from_choices([]),
        lambda: LlamaGrammar.from_choices("yes"),
        lambda: LlamaGrammar.from_choices([1]),  # type: ignore[list-item]
        lambda: LlamaGrammar.from_json_schema("{"),
        lambda: LlamaGrammar.from_json_schema("[]"),
        lambda: LlamaGrammar.from_json_schema('{"minimum": NaN}'),
        lambda: LlamaGrammar.from_json_schema('{"const": "\\ud800"}'),
        lambda: LlamaGrammar.from_json_schema({"const": {1}}),
        lambda: LlamaGrammar.from_json_schema({"format": "date", "allOf": 5}),
        lambda: LlamaGrammar.from_json_schema({"minimum": float("inf")}),
        lambda: LlamaGrammar.from_json_schema('{"items":' * 500 + "{}" + "}" * 500),
        lambda: LlamaGrammar.from_json_schema('{"items":' * 99_999 + "{}" + "}" * 99_999),
        lambda: LlamaGrammar.from_regex("a" * 2**21),
    ],
)
def test_invalid_grammars(make: Any) -> None:
    with pytest.raises(GrammarError):
        make()


DEEP = """
    import sys
    from llama_cffi import GrammarError, Model
    from llama_cffi.grammars import Constraint, LlamaGrammar

    def nested(n, inner):
        for _ in range(n):
            inner = {"items": inner}
        return inner

    def chain(n, make):
        defs = {f"d{i}": make({"$ref": f"#/$defs/d{i + 1}"}) for i in range(n)}
        return {"$defs": {**defs, f"d{n}": {"const": 1}}, "$ref": "#/$defs/d0"}

    model = Model(sys.argv[1])
    for make, given in [
        (LlamaGrammar.from_json_schema, chain(3000, lambda ref: {"properties": {"a": ref}})),
        (LlamaGrammar.from_json_schema, chain(3000, lambda ref: {"allOf": [ref]})),
        (LlamaGrammar.from_json_schema, chain(40, lambda ref: nested(100, ref))),
        (LlamaGrammar.from_lark, "start: a0" + "".join(f"\\na{i}: a{i + 1}" for i in range(9000))
         + '\\na9000: "a"'),
        (LlamaGrammar.from_lark, "start: A0" + "".join(f"\\nA{i}: A{i + 1}" for i in range(9000))
         + '\\nA9000: "a"'),
        (LlamaGrammar.from_regex, "((a{1000}){1000}){1000}"),
    ]:
        try:
            Constraint(model, make(given)).reset()
        except GrammarError as e:
            print(str(e)[:80])
"""


def test_deep_grammars_do_not_crash(child: Child) -> None:
    """llguidance itself overflows the stack with each of these chains."""
    result = child(DEEP, model_path())
    assert (result.stderr, result.returncode) == ("", 0)


def allowed(constraint: Constraint) -> set[int]:
    """Return the tokens of the vocabulary that the constraint allows."""
    candidates = Candidates(constraint.model)
    candidates.fill(np.zeros(candidates.n_vocab, np.float32))
    constraint.apply(candidates)
    array = candidates.array
    return {int(token) for token in array["id"][np.isfinite(array["logit"])]}


@settings(deadline=None, max_examples=60)
@given(st.text("ab1 -é", max_size=6))
def test_masks_equal_the_language(model: Model, start: str) -> None:
    """Compared with `re`, which has no prefix match: text is a prefix if a short ending matches."""
    constraint = Constraint(model, LlamaGrammar.from_regex("(a|ab1|é-?){0,3}b"))
    vocab = model.vocab
    endings = ["", "b", "1b", "-b", "b1b", "ab", "éb"]

    def may_be(text: bytes) -> bool:
        for end in endings:
            for whole in (text, text + b"\xa9"):
                done = whole + end.encode()
                try:
                    if re.fullmatch("(a|ab1|é-?){0,3}b", done.decode()):
                        return True
                except UnicodeDecodeError:
                    continue
        return False

    so_far = b""
    for token in vocab.tokenize(start, False):
        piece = vocab.token_to_piece(token)
        possible = may_be(so_far + piece)
        assert constraint.allows(token) == possible
        if not possible:
            with pytest.raises(ValidationError, match="does not allow token"):
                constraint.accept(token)
            break
        constraint.accept(token)
        so_far += piece
    expected = {t for t in range(len(vocab)) if constraint.allows(t)}
    assert allowed(constraint) == expected
    assert constraint.complete == bool(
        re.fullmatch("(a|ab1|é-?){0,3}b", so_far.decode("utf-8", "replace"))
    )
    assert (vocab.eos in expected) == constraint.complete
    for token in expected - vocab.eog_tokens:
        assert may_be(so_far + vocab.token_to_piece(token))


def test_order_of_candidates_does_not_matter(model: Model) -> None:
    """Few or many allowed tokens, in vocabulary order, in another order, or a subset."""
    rng = np.random.default_rng(0)
    for pattern in ("[0-9]{2}", "[^é]{9}"):
        constraint = Constraint(model, LlamaGrammar.from_regex(pattern))
        expected = allowed(constraint)
        n = len(model.vocab)
        assert (len(expected) < n // 2) == (pattern == "[0-9]{2}")
        logits = rng.normal(size=n).astype(np.float32)
        for chain in (SamplerChain(model).add_top_k(n), SamplerChain(model).add_top_k(n - 200)):
            candidates = Candidates(model)
            candidates.fill(logits)
            chain.apply(candidates)
            before = {int(i): float(x) for i, x in candidates.array[["id", "logit"]].tolist()}
            constraint.apply(candidates)
            array = candidates.array
            after = {int(i): float(x) for i, x in array[["id", "logit"]].tolist() if x > -np.inf}
            assert after == {i: x for i, x in before.items() if i in expected}


def test_forced_tokens_are_known(model: Model) -> None:
    schema = {
        "type": "object",
        "properties": {"a_long_name": {"type": "integer"}},
        "required": ["a_long_name"],
        "x-guidance": {"whitespace_flexible": False},
    }
    constraint = Constraint(model, LlamaGrammar.from_json_schema(schema))
    for token in model.vocab.tokenize('{"', False):
        constraint.accept(token)
    forced = constraint.forced_tokens()
    assert len(forced) > 1
    text = b""
    for token in forced:
        assert allowed(constraint) == {token}
        constraint.accept(token)
        text += model.vocab.token_to_piece(token)
    assert b'a_long_name":'.startswith(text)
    assert forced == model.vocab.tokenize(text, False)
    assert Constraint(model, LlamaGrammar.from_regex("[ab]")).forced_tokens() == []


def test_only_end_tokens_follow_the_end(model: Model) -> None:
    constraint = Constraint(model, LlamaGrammar.from_choices(["ok"]))
    with pytest.raises(ValidationError, match="cannot end here"):
        constraint.accept(model.vocab.eos)
    for token in model.vocab.tokenize("ok", False):
        assert not constraint.complete
        constraint.accept(token)
    assert constraint.complete
    assert constraint.ended
    for _ in range(2):
        assert allowed(constraint) == model.vocab.eog_tokens
        constraint.accept(model.vocab.eos)
    constraint.reset()
    assert not constraint.complete
    assert model.vocab.eos not in allowed(constraint)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1))
def test_choices_are_literal(model: Model, choices: list[str]) -> None:
    grammar = LlamaGrammar.from_choices(choices)
    for choice in choices:
        constraint = Constraint(model, grammar)
        for token in model.vocab.tokenize(choice, False):
            constraint.accept(token)
        assert constraint.complete
        longer = any(c != choice and c.startswith(choice) for c in choices)
        assert (allowed(constraint) == model.vocab.eog_tokens) == (not longer)


def test_nothing_can_follow(model: Model) -> None:
    constraint = Constraint(model, LlamaGrammar.from_lark(r"start: /[^\s\S]/"))
    with pytest.raises(GenerationError, match="nothing can follow in the lark grammar"):
        allowed(constraint)


def test_grammar_with_a_token_that_the_model_lacks(model: Model) -> None:
    with pytest.raises(GrammarError, match=r"<\|nope\|>"):
        Constraint(model, LlamaGrammar.from_lark("start: <|nope|>"))
    constraint = Constraint(model, LlamaGrammar.from_lark('start: "a" <|im_start|>'))
    constraint.accept(*model.vocab.tokenize("a", False))
    assert allowed(constraint) == {*model.vocab.tokenize("<|im_start|>", False, True)}


def test_control_tokens_are_not_text(model: Model) -> None:
    constraint = Constraint(model, LlamaGrammar.from_regex(r".{0,40}"))
    assert not model.vocab.eog_tokens - allowed(constraint)
    start = model.vocab.tokenize("<|im_start|>", False, True)[0]
    assert start not in allowed(constraint)


def test_a_model_without_vocabulary(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        values = writer.kv_data[0]
        values["tokenizer.ggml.model"].value = "no_vocab"
        for name in [n for n in values if n.startswith("tokenizer.ggml.") and "model" not in n]:
            del values[name]

    with (
        Model(write_tiny(tmp_path / "none.gguf", edit=edit)) as model,
        pytest.raises(ValidationError, match="no vocabulary"),
    ):
        Constraint(model, LlamaGrammar.json_object())


# GBNF

GBNF = 'root ::= "[" item ("," item)* "]"\nitem ::= [a-c]+ | "(" item ")"'


def test_gbnf_equals_the_native_grammar(model: Model) -> None:
    mine, native = Constraint(model, LlamaGrammar.from_string(GBNF)), Grammar(model, GBNF)
    for token in model.vocab.tokenize("[ab,(c)]", False):
        assert allowed(mine) == {t for t in range(len(model.vocab)) if native.allows(t)}
        assert mine.complete == native.complete
        mine.accept(token)
        native.accept(token)
    assert mine.complete
    assert mine.ended
    assert mine.forced_tokens() == []


def test_gbnf_gives_the_same_text_either_way(engine: Engine) -> None:
    for seed in range(5):
        options: dict[str, Any] = {"temperature": 1.0, "seed": seed, "n_predict": 20}
        native = engine.generate("Hi", grammar=GBNF, **options)
        assert engine.generate("Hi", structured=LlamaGrammar.from_string(GBNF), **options) == native


def test_gbnf_before_other_samplers(model: Model, engine: Engine) -> None:
    constraint = Constraint(model, LlamaGrammar.from_string('root ::= "ab" [xy]'))
    chain = SamplerChain(model).add_custom(constraint.sampler()).add_temp(1.5).add_dist(3)
    engine.generate("Hi", n_predict=1)
    text = b""
    while not constraint.ended:
        text += model.vocab.token_to_piece(chain.sample(engine.context))
    assert text in (b"abx", b"aby")


GREEDY = SamplerChain.add_greedy


def drawn(chain: SamplerChain) -> SamplerChain:
    chain.add_penalties(16, 1.3).add_logit_bias({65: 3.0})
    return chain.add_top_k(20).add_top_p(0.95).add_temp(1.4).add_dist(7)


def untruncated(chain: SamplerChain) -> SamplerChain:
    return chain.add_temp(1.4).add_dist(7)


@pytest.mark.parametrize("add", [GREEDY, drawn, untruncated])
@pytest.mark.parametrize("pattern", ["[a-z ]{30}", "(?s:.){30}", "(ab|cd)[^a]{20}(yes|no)"])
def test_mask_and_sampler_give_the_same_draws(
    model: Model, engine: Engine, pattern: str, add: Callable[[SamplerChain], SamplerChain]
) -> None:
    grammar = LlamaGrammar.from_regex(pattern)
    texts = []
    for masked in (True, False):
        constraint = Constraint(model, grammar)
        chain = SamplerChain(model)
        chain = chain.add_mask(constraint) if masked else chain.add_custom(constraint.sampler())
        add(chain)
        for _ in range(2):  # resetting the chain resets the mask
            engine.generate("Hi", max_tokens=1, temperature=0)
            texts.append([])
            while not constraint.ended and len(texts[-1]) < 40:
                texts[-1].append(chain.sample(engine.context))
            chain.reset()
    assert texts[0] == texts[1] == texts[2] == texts[3]


# Grammars that start later

DIGITS = LlamaGrammar.from_regex(r"[0-9]{2}")


def feed(constraint: Constraint, text: str) -> None:
    for token in constraint.model.vocab.tokenize(text, False):
        assert constraint.allows(token), token
        constraint.accept(token)


@pytest.mark.parametrize("grammar", [DIGITS, LlamaGrammar.from_string("root ::= [0-9] [0-9]")])
def test_unconstrained_up_to_a_text(model: Model, grammar: LlamaGrammar) -> None:
    constraint = Constraint(model, grammar, "</think>")
    for _ in range(2):
        feed(constraint, "Is it 7? </thin </th")
        assert constraint.waiting
        assert not constraint.complete
        assert not constraint.ended
        assert not allowed(constraint) & model.vocab.eog_tokens
        assert constraint.forced_tokens() == []
        with pytest.raises(ValidationError, match="cannot end"):
            constraint.accept(model.vocab.eos)
        feed(constraint, "</think>")
        assert not constraint.waiting
        feed(constraint, "42")
        assert constraint.complete
        assert allowed(constraint) == model.vocab.eog_tokens
        constraint.reset()
        feed(constraint, "half a </thi")
        constraint.reset()
        feed(constraint, "nk>")
        assert constraint.waiting
        constraint.reset()


def test_trigger_that_ends_within_a_token(model: Model) -> None:
    vocab = model.vocab
    long = next(t for t in range(len(vocab)) if vocab.token_to_piece(t) == b'{"')
    plain = vocab.tokenize("x{", False)[-1]
    assert vocab.token_to_piece(plain) == b"{"
    # The grammar needs a quote after `{`: the token is allowed, and its quote counts.
    constraint = Constraint(model, LlamaGrammar.from_regex('"[ab]"'), "{")
    assert {long, plain} <= allowed(constraint)
    constraint.accept(long)
    assert not constraint.waiting
    assert allowed(constraint) == {*vocab.tokenize("a", False), *vocab.tokenize("b", False)}
    # The grammar needs a digit: the token is not allowed, but the brace alone is.
    constraint = Constraint(model, DIGITS, "x{")
    assert long in allowed(constraint)
    feed(constraint, "hm x")
    assert plain in allowed(constraint)
    assert long not in allowed(constraint)
    assert not constraint.allows(long)
    with pytest.raises(ValidationError, match="cannot begin with"):
        constraint.accept(long)
    feed(constraint, "x{42")
    assert constraint.complete


def test_triggers_are_optional_and_part_of_the_grammar(model: Model) -> None:
    grammar = LlamaGrammar.from_lark('start: "<call>" /[0-9]+/ "</call>" | "!!" /[a-z]/')
    constraint = Constraint(model, grammar, triggers=["<call>", "!!"])
    feed(constraint, "no call here <cal")
    assert constraint.waiting
    assert constraint.complete
    assert constraint.allows(model.vocab.eos)
    feed(constraint, " or <call>12</call>")
    assert constraint.ended
    constraint.reset()
    feed(constraint, "well!!z")
    assert constraint.ended
    with pytest.raises(GrammarError, match="refuses its trigger b'other'"):
        Constraint(model, grammar, triggers=["other"])
    with pytest.raises(ValidationError, match="start_after and triggers exclude each other"):
        Constraint(model, grammar, "a", triggers=["b"])
    for wrong in ([""], "word", [True], [-1], [1.5], [b"x"], [re.compile(b"x")], 5):
        with pytest.raises(ValidationError):
            Constraint(model, grammar, triggers=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "before", "from_then_on"),
    [
        (r"\bcall (?=\d)", "recall 1, ", "call 1"),  # looks ahead: the token before is not enough
        (r"(?:Action|Tool): *(\{)", "So. Action: ", "{1"),  # from the group on
        (r"^\s*(\[)", "  ", "[2"),
        (r"é(€)", "aé and ", "é€3"),
        (r"(x)|(y)", "abc ", "y4"),  # the group that took part
    ],
)
def test_patterns_start_the_grammar_at_their_first_group(
    model: Model, pattern: str, before: str, from_then_on: str
) -> None:
    match = re.compile(pattern).search(before + from_then_on)
    assert match is not None
    group = next((i for i, g in enumerate(match.groups(), 1) if g is not None), 0)
    follows = match[group] or match[0]
    start = "call 1" if follows == "call " else follows
    grammar = LlamaGrammar.from_regex(re.escape(start) + "[0-9]{2}")
    constraint = Constraint(model, grammar, triggers=[re.compile(pattern)])
    assert constraint.complete
    feed(constraint, before)
    assert constraint.waiting
    feed(constraint, (before + from_then_on)[len(before) : match.start(group)] + start)
    assert not constraint.waiting
    assert not constraint.complete
    feed(constraint, "77")
    assert constraint.ended
    constraint.reset()
    assert constraint.waiting


def test_trigger_tokens_start_the_grammar(model: Model) -> None:
    vocab = model.vocab
    brace = vocab.tokenize("x{", False)[-1]
    long = next(t for t in range(len(vocab)) if vocab.token_to_piece(t) == b'{"')
    grammar = LlamaGrammar.from_regex(r"\{[0-9]")
    constraint = Constraint(model, grammar, triggers=[brace])
    constraint.accept(long)  # the same text in another token is only text
    assert constraint.waiting
    constraint.accept(brace)
    assert not constraint.waiting
    feed(constraint, "5")
    assert constraint.ended
    start = next(t for t in range(len(vocab)) if vocab.text(t) == "<|im_start|>")
    named = LlamaGrammar.from_string('root ::= "<|im_start|>" [0-9]')
    constraint = Constraint(model, named, triggers=[start])
    constraint.accept(start)
    feed(constraint, "7")
    assert constraint.ended
    with pytest.raises(GrammarError, match="refuses its trigger token"):
        Constraint(model, grammar, triggers=[start])
    with pytest.raises(ValidationError, match="ends the text"):
        Constraint(model, grammar, triggers=[vocab.eos])
    with pytest.raises(ValidationError):
        Constraint(model, grammar, triggers=[len(vocab)])


def test_a_pattern_completed_with_text_that_the_grammar_refuses(model: Model) -> None:
    vocab = model.vocab
    long = next(t for t in range(len(vocab)) if vocab.token_to_piece(t) == b'{"')
    plain = vocab.tokenize("x{", False)[-1]
    constraint = Constraint(
        model, LlamaGrammar.from_regex(r"\{[0-9]"), triggers=[re.compile(r"\{")]
    )
    assert not constraint.allows(long)
    assert constraint.allows(plain)
    assert constraint.allowed() is None  # which tokens break it is only known of a chosen one
    assert constraint.rejects(long)
    assert not constraint.rejects(plain)
    assert long not in allowed(constraint)
    with pytest.raises(ValidationError, match="cannot begin with"):
        constraint.accept(long)
    feed(constraint, "hm")
    assert constraint.allowed() is None
    constraint.accept(plain)
    assert not constraint.waiting


def test_reasoning_is_unconstrained_and_the_answer_is_not(engine: Engine) -> None:
    for seed in range(3):
        text = engine.generate(
            "What is 3 + 4? /think", structured=DIGITS, structured_after="</think>", seed=seed
        )
        assert re.fullmatch(r"(?s).+</think>[0-9]{2}", text), text


def test_engine_with_triggers(engine: Engine) -> None:
    grammar = LlamaGrammar.from_lark(r'start: "= " /[A-C]{3}/')
    options: dict[str, Any] = {"structured": grammar, "grammar_triggers": ["= "], "temperature": 0}
    text = engine.generate("What is 3 + 4? /think", **options)
    assert re.search(r"= [A-C]{3}$", text), text
    # Whatever the draws: once the pattern has come, the rest matches.
    options |= {"grammar_triggers": [re.compile(r"[a-z](\.|,|\?)")], "temperature": 1.5}
    options["structured"] = LlamaGrammar.from_regex(r"[.,?] [A-C]{3}")
    begun = 0
    for seed in range(8):
        text = engine.generate("Tell me a story about a cat.", max_tokens=60, seed=seed, **options)
        if match := re.search(r"[a-z]([.,?].*)", text):
            begun += 1
            assert re.fullmatch(r"[.,?]( ([A-C]{0,3})?)?", match[1]), text
    assert begun


# In a chain


def test_every_generation_starts_from_the_beginning(engine: Engine) -> None:
    grammar = LlamaGrammar.from_regex("[a-z]{1,9}!")
    texts = [engine.generate("Hi", seed=1, structured=grammar) for _ in range(2)]
    assert texts[0] == texts[1]
    assert re.fullmatch("[a-z]{1,9}!", texts[0])
    # Also after an early end, and with prompt tokens accepted for penalties.
    engine.generate("Hi", n_predict=1, structured=grammar, repeat_penalty=1.2, seed=1)
    text = engine.generate("Hi", structured=grammar, repeat_penalty=1.2, seed=1)
    assert re.fullmatch("[a-z]{1,9}!", text)


def test_other_samplers_still_apply(engine: Engine, model: Model) -> None:
    grammar = LlamaGrammar.from_choices(["left", "right"])
    first = {t for t in range(len(model.vocab)) if Constraint(model, grammar).allows(t)}
    for wanted in ("left", "right"):
        lowered = {
            t: -30.0 for t in first if model.vocab.token_to_piece(t)[:1] != wanted[:1].encode()
        }
        for seed in range(4):
            options: dict[str, Any] = {"temperature": 1.5, "seed": seed, "structured": grammar}
            assert engine.generate("Hi", logit_bias=lowered, **options) == wanted
    wide: dict[str, Any] = {"temperature": 50.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    seen = {engine.generate("Hi", seed=s, structured=grammar, **wide) for s in range(20)}
    assert seen == {"left", "right"}
    assert len({engine.generate("Hi", temperature=0, structured=grammar) for _ in range(3)}) == 1


def test_result_of_a_logits_processor_is_masked(engine: Engine) -> None:
    def same(_: Any, scores: Any) -> Any:
        return np.zeros_like(scores)

    text = engine.generate("Hi", structured=DIGITS, logits_processor=[same], temperature=1.0)
    assert re.fullmatch("[0-9]{2}", text)
    with pytest.raises(GenerationError, match="every token is forbidden"):
        engine.generate(
            "Hi", structured=DIGITS, logits_processor=[lambda _, s: np.full_like(s, -np.inf)]
        )


def test_conflicting_parameters(model: Model) -> None:
    for options in (
        {"structured": "regex"},
        {"structured": DIGITS, "grammar": GBNF},
        {"structured_after": "x"},
        {"structured": DIGITS, "structured_after": 5},
    ):
        with pytest.raises(ValidationError):
            SamplingParams(**options)  # type: ignore[arg-type]
    params = SamplingParams(structured=DIGITS, structured_after="x", grammar_triggers=["y"])
    with pytest.raises(ValidationError, match="start_after and triggers exclude each other"):
        build_chain(model, params)


BUILDS = """
    import json, sys
    from llama_cffi import Engine, Model
    from llama_cffi.grammars import Constraint, LlamaGrammar

    properties = {"ä": {"type": "integer", "maximum": 99, "minimum": 0}, "b": {"enum": ["x", "y"]}}
    schema = {"type": "object", "properties": properties, "required": ["ä", "b"],
              "additionalProperties": False}
    with Engine(sys.argv[1], n_ctx=512, n_threads=1) as engine:
        grammar = LlamaGrammar.from_json_schema(schema)
        for seed in range(3):
            document = json.loads(engine.generate("Hi", temperature=1.5, seed=seed,
                                  structured=grammar, json_stop=()))
            assert document["b"] in ("x", "y") and 0 <= document["ä"] <= 99
        choice = engine.generate("Hi", structured=LlamaGrammar.from_string('root ::= "a" "b"'))
        assert choice == "ab", choice
    # SentencePiece with a space before each text, and with byte tokens.
    with Model(sys.argv[2]) as model:
        vocab = model.vocab
        ids = {vocab.token_to_piece(t): t for t in range(len(vocab))}
        constraint = Constraint(model, LlamaGrammar.from_choices(["a aé", "a ad"]))
        for piece, forced in ((b"a", [ids[b" a"]]), (b" a", [])):
            constraint.accept(ids[piece])
            assert constraint.forced_tokens() == forced, constraint.forced_tokens()
        print(sorted(p for p, t in ids.items() if constraint.allows(t)))
        constraint.accept(ids["é".encode()])
        assert constraint.ended
        # As the model's tokenizer would, not the longest tokens first.
        constraint = Constraint(model, LlamaGrammar.from_choices(["xabcde"]))
        constraint.accept(ids[b"x"])
        print([vocab.token_to_piece(t) for t in constraint.forced_tokens()])
    print("done")
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_on_every_build(child: Child, tmp_path: Path, build: str) -> None:
    def edit(writer: Any) -> None:
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
        kinds = [gguf.TokenType.UNKNOWN] + 2 * [gguf.TokenType.CONTROL]
        kinds += 256 * [gguf.TokenType.BYTE]
        # UTF-8 never has these bytes.
        for byte, text in ((0xC0, "\u2581a"), (0xC1, "é"), (0xF5, "ab"), (0xF6, "bc")):
            tokens[3 + byte], kinds[3 + byte] = text, gguf.TokenType.NORMAL
        values = writer.kv_data[0]
        values["tokenizer.ggml.model"].value = "llama"
        values["tokenizer.ggml.tokens"].value = tokens
        values["tokenizer.ggml.token_type"].value = kinds
        values["tokenizer.ggml.bos_token_id"].value = 1
        values["tokenizer.ggml.eos_token_id"].value = 2
        writer.add_token_scores([float(text == "bc") for text in tokens])

    path = write_tiny(tmp_path / "spm.gguf", edit=edit)
    result = child(BUILDS, model_path(), path, LLAMA_CFFI_BUILD=build)
    assert (result.stderr, result.returncode) == ("", 0)
    pieces = str(sorted([b"d", "é".encode(), "é".encode()[:1]]))
    assert result.stdout == f"{pieces}\n[b'a', b'bc', b'd', b'e']\ndone\n"


def test_dropped_model_is_freed(child: Child) -> None:
    """Compiled grammars do not keep the model alive."""
    result = child(
        """
        import gc, sys, weakref
        from llama_cffi import Model
        from llama_cffi.grammars import Constraint, LlamaGrammar
        model = Model(sys.argv[1])
        constraint = Constraint(model, LlamaGrammar.json_object())
        gone = weakref.ref(model)
        del model, constraint
        gc.collect()
        assert gone() is None
        """,
        model_path(),
    )
    assert (result.stderr, result.returncode) == ("", 0)
