from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.gbnf_texts import JSON
from support.tiny_gguf import write_tiny

from llama_cffi.binding import Candidates, Grammar, Model
from llama_cffi.demo import model_path
from llama_cffi.errors import GenerationError, GrammarError, ValidationError

EOS, START = 258, 257  # of the tiny model; START is a control token


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    with Model(tiny_model, n_gpu_layers=0) as model:
        yield model


@pytest.fixture(scope="module")
def demo() -> Iterator[Model]:
    with Model(model_path(), n_gpu_layers=0) as model:
        yield model


def feed(grammar: Grammar, text: str) -> None:
    for token in grammar.model.vocab.tokenize(text):
        assert grammar.allows(token)
        grammar.accept(token)


def token(model: Model, text: str | bytes) -> int:
    """The id of the one token with this text."""
    raw = text.encode() if isinstance(text, str) else text
    vocab = model.vocab
    return next(t for t in range(vocab.n_tokens) if vocab.token_to_piece(t, True) == raw)


def allowed(grammar: Grammar) -> set[int]:
    return {t for t in range(grammar.model.vocab.n_tokens) if grammar.allows(t)}


def applied(grammar: Grammar) -> set[int]:
    """The tokens that `apply` leaves."""
    candidates = Candidates(grammar.model)
    candidates.fill(np.zeros(candidates.n_vocab, np.float32))
    grammar.apply(candidates)
    assert not candidates.sorted
    array = candidates.array
    assert set(array["logit"].tolist()) <= {0.0, -float("inf")}
    return set(array["id"][array["logit"] == 0].tolist())


def test_step_by_step(model: Model) -> None:
    a, b, c = (token(model, x) for x in "abc")
    with Grammar(model, 'root ::= "a" [bc]?') as grammar:
        for _ in range(2):
            assert allowed(grammar) == applied(grammar) == {a}
            assert (grammar.complete, grammar.ended, grammar.waiting) == (False, False, False)
            grammar.accept(a)
            assert allowed(grammar) == applied(grammar) == {b, c, EOS, 256}
            assert (grammar.complete, grammar.ended) == (True, False)
            grammar.accept(EOS)
            grammar.accept(c)
            assert (grammar.complete, grammar.ended) == (True, True)
            assert allowed(grammar) == applied(grammar) == {EOS, 256}
            grammar.accept(EOS)
            grammar.accept(EOS)
            grammar.reset()


def test_what_the_grammar_forbids_changes_nothing(model: Model) -> None:
    grammar = Grammar(model, 'root ::= "a" "b"+')
    with pytest.raises(ValidationError, match=r"token 98 \(b'b'\) here; what can come: \"a\""):
        grammar.accept(token(model, "b"))
    with pytest.raises(ValidationError, match=r"cannot end here .*\"a\""):
        grammar.accept(EOS)
    feed(grammar, "abb")
    for wrong in (token(model, "a"), START, token(model, "\n")):
        assert not grammar.allows(wrong)
        with pytest.raises(ValidationError, match=r"what can come: .*the end"):
            grammar.accept(wrong)
    feed(grammar, "bb")
    assert grammar.complete


def test_bytes_of_one_character(model: Model) -> None:
    grammar = Grammar(model, 'root ::= "é" [€😀]')
    first, second = (token(model, bytes([b])) for b in "é".encode())
    assert allowed(grammar) == applied(grammar) == {first}
    grammar.accept(first)
    assert allowed(grammar) == applied(grammar) == {second}
    with pytest.raises(ValidationError, match="does not allow"):
        grammar.accept(first)
    grammar.accept(second)
    assert allowed(grammar) == {token(model, bytes([b])) for b in (0xE2, 0xF0)}
    feed(grammar, "😀")
    assert grammar.ended


def test_control_tokens_are_their_text(model: Model) -> None:
    grammar = Grammar(model, 'root ::= "<|im_start|>" "a"?')
    assert START in allowed(grammar) == applied(grammar)
    grammar.accept(START)
    assert grammar.complete


def test_dead_end(model: Model) -> None:
    grammar = Grammar(model, 'root ::= "a" "\\x00"')
    feed(grammar, "a")
    assert allowed(grammar) == applied(grammar) == set()


def test_apply_keeps_the_other_logits(model: Model) -> None:
    logits = np.linspace(-3, 3, model.vocab.n_tokens, dtype=np.float32)
    candidates = Candidates(model)
    candidates.fill(logits)
    Grammar(model, "root ::= [a-c]").apply(candidates)
    left = {t: float(logits[t]) for t in (token(model, x) for x in "abc")}
    array = candidates.array
    finite = np.isfinite(array["logit"])
    assert {int(i): float(x) for i, x, _ in array[finite]} == left


def test_apply_refuses_what_c_does_not_survive(model: Model, tiny_model: Path) -> None:
    grammar = Grammar(model, "root ::= [a-c]")
    with Model(tiny_model, n_gpu_layers=0) as other, pytest.raises(ValidationError, match="model"):
        grammar.apply(Candidates(other))
    with pytest.raises(ValidationError, match="no candidates"):
        grammar.apply(Candidates(model))
    candidates = Candidates(model)
    candidates.fill(np.zeros(candidates.n_vocab, np.float32))
    candidates.array["id"][7] = 70_000
    with pytest.raises(ValidationError, match="outside"):
        grammar.apply(candidates)


@pytest.mark.parametrize("bad", [-1, 259, 2**40, 1.5, "a", None])
def test_no_token(model: Model, bad: Any) -> None:
    grammar = Grammar(model, "root ::= .")
    for call in (grammar.allows, grammar.accept):
        with pytest.raises(ValidationError, match="token"):
            call(bad)
    with pytest.raises(ValidationError, match="token"):
        Grammar(model, "root ::= .", trigger_tokens=[bad])


def test_closed(tiny_model: Path) -> None:
    model = Model(tiny_model, n_gpu_layers=0)
    grammar, other = Grammar(model, "root ::= ."), Grammar(model, "root ::= .", triggers=["a"])
    grammar.close()
    grammar.close()
    model.close()
    for closed in (grammar, other):
        for call in (
            lambda g: g.allows(1),
            lambda g: g.accept(1),
            lambda g: g.apply(Candidates(g.model)),
            lambda g: g.reset(),
        ):
            with pytest.raises(ValidationError, match="closed"):
                call(closed)
    with pytest.raises(ValidationError, match="closed"):
        Grammar(model, "root ::= .")
    assert repr(grammar) == "<Grammar closed>"


@pytest.mark.parametrize(
    "grammar",
    [None, b"root ::= .", "", "root ::= (", "root ::= '\ud800'", "root ::= [a]\0", "root ::= root"],
)
def test_no_grammar(model: Model, grammar: Any) -> None:
    with pytest.raises(ValidationError):
        Grammar(model, grammar)


def test_root(model: Model) -> None:
    text = 'root ::= "a"\nother ::= "b"'
    assert allowed(Grammar(model, text, "other")) == {token(model, "b")}
    with pytest.raises(GrammarError, match="no rule 'x'"):
        Grammar(model, text, "x")


# Lazy grammars


def test_waits_for_its_trigger(demo: Model) -> None:
    grammar = Grammar(demo, r'root ::= "<tool>" [a-z]+ "</tool>"', triggers=["<tool>"])
    everything = set(range(demo.vocab.n_tokens))
    for _ in range(2):
        assert (grammar.waiting, grammar.complete, grammar.ended) == (True, True, False)
        assert repr(grammar) == "<Grammar waiting>"
        assert allowed(grammar) == applied(grammar) == everything
        feed(grammar, "Let me see. 1 > 0\n")
        grammar.accept(demo.vocab.eos or 0)
        assert grammar.waiting
        feed(grammar, "Now: <tool>")
        assert not grammar.waiting
        assert not grammar.complete
        feed(grammar, "search</tool>")
        assert grammar.ended
        assert allowed(grammar) == applied(grammar) < everything
        grammar.reset()


def test_trigger_within_tokens(demo: Model) -> None:
    """The text before it in the same token does not count, the text behind it does."""
    vocab = demo.vocab
    glued = [t for t in vocab.tokenize('say: {"name": 1}') if vocab.token_to_piece(t) == b' {"']
    assert glued, "choose another text: this one has no token that begins before the trigger"
    grammar = Grammar(demo, r'root ::= "{" "\"" [a-z]+ "\""', triggers=["{"])
    feed(grammar, "say:")
    grammar.accept(glued[0])
    assert not grammar.waiting
    assert not grammar.allows(token(demo, "{"))
    feed(grammar, 'name"')
    assert grammar.ended


def test_trigger_over_many_tokens(model: Model) -> None:
    grammar = Grammar(model, 'root ::= "<é>" "b"', triggers=["<é>b", "<é>"])
    feed(grammar, "<<é" * 30)
    assert grammar.waiting
    grammar.accept(token(model, ">"))
    assert not grammar.waiting
    assert allowed(grammar) == applied(grammar) == {token(model, "b")}


def test_trigger_patterns(model: Model) -> None:
    patterns = [re.compile(r"(?:^|\n)(<t>)"), re.compile("é+(b)")]
    grammar = Grammar(model, 'root ::= ("<t>" | "b") "c"', triggers=patterns)
    for before, then in (("a <t> b\n", "<t>"), ("a é", "b"), ("", "<t>")):
        for byte in (before + then).encode():
            assert grammar.waiting
            grammar.accept(byte_token(model, byte))
        assert not grammar.waiting
        assert not grammar.complete
        grammar.accept(byte_token(model, ord("c")))
        assert grammar.ended
        grammar.reset()
    refused = Grammar(model, 'root ::= "x"', triggers=[re.compile("y")])
    with pytest.raises(GenerationError, match="the trigger came in"):
        refused.accept(byte_token(model, ord("y")))
    with pytest.raises(ValidationError, match="must match str"):
        Grammar(model, 'root ::= "x"', triggers=[re.compile(b"y")])  # type: ignore[list-item]


def byte_token(model: Model, byte: int) -> int:
    return next(t for t in range(256) if model.vocab.token_to_piece(t) == bytes([byte]))


def test_trigger_token(model: Model) -> None:
    grammar = Grammar(model, 'root ::= "<|im_start|>" "a"', trigger_tokens=[START])
    feed(grammar, "<|im_start|>aa")  # as text, not as the token
    assert grammar.waiting
    grammar.accept(START)
    assert allowed(grammar) == applied(grammar) == {token(model, "a")}


def test_text_behind_the_trigger_is_refused(demo: Model) -> None:
    grammar = Grammar(demo, r'root ::= "{" [0-9]', triggers=["{"])
    glued = token(demo, ' {"')
    for _ in range(2):
        with pytest.raises(GenerationError, match=r"b'{\"', which the grammar refuses"):
            grammar.accept(glued)
        assert grammar.waiting
    feed(grammar, "{")
    assert grammar.allows(token(demo, "7"))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"triggers": ["b"]}, r"refuses its trigger 'b'.*\"a\""),
        ({"triggers": ["a", "aab"]}, "refuses its trigger 'aab'"),
        ({"triggers": [""]}, "empty"),
        ({"triggers": ["a\0"]}, "NUL"),
        ({"triggers": ["\ud800"]}, "UTF-8"),
        ({"triggers": [7]}, "text must be str or bytes"),
        ({"triggers": "a"}, r"list of words: \['a'\]"),
        ({"trigger_tokens": [START]}, "refuses its trigger token 257"),
        ({"trigger_tokens": [EOS]}, "ends the text"),
    ],
)
def test_triggers_that_cannot_be(model: Model, arguments: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Grammar(model, 'root ::= "a"+', **arguments)


# Every build

GENERATE = """
    import json, sys
    from llama_cffi.binding import Batch, Context, Grammar, Model, SamplerChain

    model = Model(sys.argv[1], n_gpu_layers=0)
    context = Context(model, n_ctx=512, n_threads=1)
    grammar = Grammar(model, sys.argv[2])
    chain = SamplerChain(model).add_temp(1.5).add_dist(3).add_grammar(grammar)
    prompt = model.vocab.tokenize("Here it is: ")
    texts = []
    for _ in range(6):
        context.memory.clear()
        batch = Batch(len(prompt))
        batch.fill(prompt, 0)
        tokens, n_past = [], 0
        while not grammar.ended:
            context.decode(batch)
            n_past += len(batch)
            token = chain.sample(context)
            if model.vocab.is_eog(token):
                break
            tokens.append(token)
            batch.fill([token], n_past)
        texts.append(model.vocab.detokenize(tokens, special=True))
        grammar.reset()
    print(json.dumps(texts))
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_generated_text_follows_the_grammar(child: Child, build: str) -> None:
    result = child(GENERATE, model_path(), JSON, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    texts = json.loads(result.stdout)
    for text in texts:
        assert isinstance(json.loads(text), dict), text
    assert len(set(texts)) > 1


def deep_rules(n: int) -> str:
    return "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(n)) + f'r{n} ::= "a"'


NASTY = {
    "empty loop": 'root ::= ("a"?)*',
    "empty loops": 'root ::= ((("a"*)* "b"*)* "c"?)+',
    "empty in many ways": "root ::= " + '("a"? | "b"? | "c"*) ' * 40,
    "doubling": 'root ::= "-" root "b" | [-+] root "c" | "d"',
    "doubling later": 'root ::= "<" x\nx ::= "a" x "b" | [a-c] x "c" | "d"',
    "alike": 'root ::= "-" root "b" | "-" root "c" | "d"',
    "ambiguous": 'root ::= "a" root root | "a"',
    "left": "root ::= n root [a] | [b]\nn ::= m\nm ::= [c]*",
    "loops in loops": 'root ::= ((("a"*){0,100}){0,100}){0,100}',
    "many times": 'root ::= "a"{0,10000} "b"{10000}',
    "many times many": 'root ::= "a"{0,10000}{0,10000}{0,10000}',
    "too many": 'root ::= "a"{0,2000000000}',
    "chain": "root ::= r0\n"
    + "".join(f'r{i} ::= r{i + 1} | r{i + 1} "x" | "y" r{i + 1}\n' for i in range(60))
    + 'r60 ::= "a"',
    "many ways": "root ::= r0\n"
    + "".join(f'r{i} ::= r{i + 1} "x" | "y"? r{i + 1}\n' for i in range(60))
    + 'r60 ::= "a"',
    "deep rules": deep_rules(200),
    "deeper rules": deep_rules(5_000),
    "parentheses": "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000,
    "stars": 'root ::= "a"' + "*" * 5_000,
    "nested text": 'root ::= "a" root "b" | "c"',
    "empty rests": 'root ::= "a" root n n n | "c"\nn ::= "d"?',
    "long literal": f'root ::= "{"a" * 90_000}"',
    "words": "root ::= " + " | ".join(f'"{i * 7919}"' for i in range(4000)),
    "end of the text": 'root ::= "<" x ">"\nx ::= "a" x "b"? | "c"',
    "rules": "root ::= x0\n" + "".join(f'x{i} ::= "a" x{i + 1}\n' for i in range(5_000))
    + 'x5000 ::= "b"',
    "classes": "root ::= [" + "".join(f"\\U{i:08x}" for i in range(0x4E00, 0x9000, 2)) + "]*",
}  # fmt: skip

NASTIEST = """
    import json, sys
    import numpy as np
    from llama_cffi.binding import Candidates, Grammar, Model
    from llama_cffi.errors import GenerationError, GrammarError

    model = Model(sys.argv[1], n_gpu_layers=0)
    vocab = model.vocab
    candidates = Candidates(model)
    zeros = np.zeros(vocab.n_tokens, np.float32)
    likely = vocab.tokenize("abcdxy-<>0179\u4e00")
    ends = {}
    for name, text in json.load(open(sys.argv[2])).items():
        ends[name] = "accepted"
        try:
            grammar = Grammar(model, text)
            for step in range(1100):
                if step % 50 == 0:
                    candidates.fill(zeros)
                    grammar.apply(candidates)
                token = next((t for t in likely if grammar.allows(t)), None)
                if token is None:
                    break
                grammar.accept(token)
            grammar.reset()
        except (GrammarError, GenerationError) as e:
            ends[name] = type(e).__name__
    print(json.dumps(ends))
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_nasty_grammars(child: Child, tiny_model: Path, tmp_path: Path, build: str) -> None:
    path = tmp_path / "nasty.json"
    path.write_text(json.dumps(NASTY))
    result = child(NASTIEST, tiny_model, path, LLAMA_CFFI_BUILD=build, timeout=100)
    assert (result.returncode, result.stderr) == (0, "")
    ends = json.loads(result.stdout)
    refused = {name for name, end in ends.items() if end == "GrammarError"}
    assert refused == {
        "left",
        "many times many",
        "too many",
        "many ways",
        "deeper rules",
        "parentheses",
        "stars",
    }
    assert set(ends.values()) == {"accepted", "GrammarError"}


def test_too_deep(model: Model) -> None:
    grammar = Grammar(model, 'root ::= "(" root ")" | "a"')
    opening, a, closing = (token(model, c) for c in "(a)")
    for _ in range(2):
        depth = 0
        while grammar.allows(opening):
            grammar.accept(opening)
            depth += 1
        assert 900 < depth <= 1000
        with pytest.raises(GenerationError, match="deep"):
            grammar.accept(opening)
        assert allowed(grammar) == applied(grammar) == {a}
        grammar.accept(a)
        for _ in range(depth):
            assert grammar.allows(closing)
            grammar.accept(closing)
        assert grammar.ended
        grammar.reset()


def test_python_engine_is_the_same(model: Model) -> None:
    """Where C could hang on a token, Python applies the grammar."""
    texts = ('root ::= "x" ([a-c]+)+ "\\n"', 'root ::= "x" [a-c]+ "\\n"')
    slow, fast = (Grammar(model, text) for text in texts)
    assert (slow._in_c, fast._in_c) == (False, True)
    for c in "xabcaab\n":
        assert applied(slow) == applied(fast) == allowed(slow) == allowed(fast)
        for grammar in (slow, fast):
            feed(grammar, c)
    assert slow.ended
    slow.reset()
    assert allowed(slow) == {token(model, "x")}


ODD_VOCABULARIES = """
    import sys
    from llama_cffi.binding import Grammar, Model
    from llama_cffi.errors import ValidationError

    with Model(sys.argv[1], n_gpu_layers=0) as model:
        try:
            Grammar(model, "root ::= .")
        except ValidationError as e:
            print("no vocabulary" in str(e))
    with Model(sys.argv[2], n_gpu_layers=0, vocab_only=True) as model:
        grammar = Grammar(model, "root ::= .+")
        empty = [t for t in range(model.vocab.n_tokens) if not model.vocab.token_to_piece(t, True)]
        nul = model.vocab.tokenize("\\0")
        print(empty, [grammar.allows(t) for t in empty + nul])
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_odd_vocabularies(child: Child, tmp_path: Path, build: str) -> None:
    def none(writer: Any) -> None:
        writer.kv_data[0]["tokenizer.ggml.model"].value = "no_vocab"

    def empty(writer: Any) -> None:
        writer.kv_data[0]["tokenizer.ggml.token_type"].value[200] = gguf.TokenType.UNUSED

    edits: list[Callable[[Any], None]] = [none, empty]
    paths = [write_tiny(tmp_path / f"{e.__name__}.gguf", edit=e) for e in edits]
    result = child(ODD_VOCABULARIES, *paths, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["True", "[200] [False, False]"]


SENTENCEPIECE = """
    import sys
    from llama_cffi.binding import Grammar, Model

    model = Model(sys.argv[1], n_gpu_layers=0)
    vocab = model.vocab
    pieces = {t: vocab.token_to_piece(t, True) for t in range(vocab.n_tokens)}
    ids = {piece: t for t, piece in pieces.items()}
    assert ids[b" a"] and ids["\u00e9".encode()] and ids[b"</s>"] == 2, pieces
    grammar = Grammar(model, 'root ::= " a" [\u00e9\u20ac]+ "</s>"? "<unk>"? | "<s>" .*')
    text = [b" a", bytes([0xC3]), bytes([0xA9]), "\u00e9".encode(), b"<"]
    for token in map(ids.__getitem__, text):
        for t, piece in pieces.items():
            mine = grammar._machine.feed(grammar._state, piece) is not None
            if not vocab.is_eog(t):
                assert mine == grammar._c_allows(t), (token, t, piece)
        grammar.accept(token)
    # A lazy grammar whose trigger begins within a token, in a vocabulary that adds spaces.
    grammar = Grammar(model, 'root ::= "a" "b"', triggers=["a"])
    grammar.accept(ids[b" a"])
    print([piece for t, piece in pieces.items() if grammar.allows(t)])
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_sentencepiece(child: Child, tmp_path: Path, build: str) -> None:
    def edit(writer: Any) -> None:
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
        kinds = [gguf.TokenType.UNKNOWN] + 2 * [gguf.TokenType.CONTROL]
        kinds += 256 * [gguf.TokenType.BYTE]
        for byte, text in ((0xC0, "\u2581a"), (0xC1, "é")):  # no UTF-8 has these bytes
            tokens[3 + byte], kinds[3 + byte] = text, gguf.TokenType.NORMAL
        values = writer.kv_data[0]
        values["tokenizer.ggml.model"].value = "llama"
        values["tokenizer.ggml.tokens"].value = tokens
        values["tokenizer.ggml.token_type"].value = kinds
        values["tokenizer.ggml.bos_token_id"].value = 1
        values["tokenizer.ggml.eos_token_id"].value = 2
        writer.add_token_scores([0.0] * len(tokens))

    path = write_tiny(tmp_path / "spm.gguf", edit=edit)
    result = child(SENTENCEPIECE, path, LLAMA_CFFI_BUILD=build)
    assert (result.stderr, result.returncode) == ("", 0)
    assert result.stdout.strip() == "[b'b']"
