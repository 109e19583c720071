"""What the tests of llama-cpp-python check, through the drop-in `llama_cffi.llama_cpp`.

https://github.com/abetlen/llama-cpp-python/tree/main/tests, version 0.3.36. Its models are on the
Hugging Face hub; here they are the demo model, and tiny models of the same kinds: a transformer, a
recurrent model, a hybrid. Its two tests of private modules use our classes of the same objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import gguf
import jsonschema
import numpy as np
import pytest
from support.odd_models import write_hybrid, write_recurrent
from support.tiny_encoders import write_bert
from support.tiny_gguf import write_tiny

import llama_cffi
import llama_cffi.llama_cpp as llama_cpp
from llama_cffi.demo import model_path
from llama_cffi.llama_cpp import Llama, LlamaGrammar, llama_chat_format, llama_speculative

PROMPT = "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n"
FOX = "The quick brown fox"
MISTRAL = (  # mistralai/Mistral-7B-Instruct-v0.2, tokenizer_config.json
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('only user and assistant roles') }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def demo() -> Iterator[Llama]:
    with Llama(str(model_path()), n_ctx=256, n_threads=1, verbose=False) as llm:
        yield llm


def text_of(llm: Llama, prompt: str | list[int], **options: object) -> str:
    answer = llm.create_completion(prompt, **options)  # type: ignore[call-overload]
    text: str = answer["choices"][0]["text"]
    return text


def test_the_module_has_a_version() -> None:
    assert llama_cpp.__version__


# --- the tokenizer alone ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vocabulary of a SentencePiece model, without weights."""
    path = tmp_path_factory.mktemp("words") / "words.gguf"
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581"]
    tokens += [c for c in "HeloWrd</s>" if c not in tokens]
    tokens = list(dict.fromkeys(tokens))
    n_letters = len(tokens)
    for word in ("\u2581Hello", "\u2581World"):  # llama.cpp merges pairs of neighbours
        tokens += [word[:n] for n in range(2, len(word) + 1)]
    kinds = gguf.TokenType
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types + [kinds.NORMAL] * (len(tokens) - len(types)))
    writer.add_token_scores(
        [-100.0] * n_letters + [float(-i) for i in range(len(tokens) - n_letters)]
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_tokens_of_a_vocabulary_and_back(words: Path) -> None:
    with Llama(str(words), vocab_only=True, verbose=False) as llm:
        bos, eos = llm.token_bos(), llm.token_eos()
        hello, world = (
            llm.model.vocab.tokenize(word, add_special=False)[0] for word in ("Hello", "World")
        )
        tokens = llm.tokenize(b"Hello World")
        assert tokens == [bos, hello, world]
        assert llm.detokenize(tokens) == b"Hello World"
        # Without BOS the space that SentencePiece puts first stays.
        assert llm.tokenize(b"Hello World", add_bos=False) == [hello, world]
        assert llm.detokenize([hello, world]) == b" Hello World"
        # The name of a special token is text unless special=True.
        plain = llm.tokenize(b"Hello World</s>")
        assert plain[:3] == [bos, hello, world]
        assert eos not in plain
        assert len(plain) > 4
        assert llm.tokenize(b"Hello World</s>", special=True) == [bos, hello, world, eos]
        assert llm.tokenize(b"", add_bos=True, special=True) == [bos]
        assert llm.detokenize([bos]) == b""


# --- a model ---------------------------------------------------------------------------------


def test_the_low_level_objects_generate() -> None:
    # `_internals.LlamaModel`, `LlamaContext`, `LlamaBatch`, `LlamaSampler` are these classes.
    model = llama_cffi.Model(model_path(), use_mlock=False)
    context = llama_cffi.Context(model, n_ctx=64, n_batch=64, n_ubatch=64, n_threads=1)
    chain = llama_cffi.SamplerChain(model)
    chain.add_top_k(50).add_top_p(0.9, 1).add_temp(0.8).add_dist(1337)
    batch = llama_cffi.Batch(64)
    tokens, n_past = model.vocab.tokenize(PROMPT, True, True), 0
    found: list[int] = []
    for _ in range(4):
        batch.fill(tokens, n_past)
        context.decode(batch)
        n_past += len(tokens)
        tokens = [chain.sample(context, -1)]
        found += tokens
    assert len(found) == 4
    assert model.vocab.detokenize(found, True)
    model.close()
    with pytest.raises(llama_cffi.ValidationError, match="closed"):
        context.decode(batch)


def test_completions(demo: Llama) -> None:
    assert text_of(demo, PROMPT, max_tokens=6, top_k=50, top_p=0.9, temperature=0, seed=1337) == (
        "42"
    )
    grammar = LlamaGrammar.from_string('root ::= "true" | "false"')
    given = {"max_tokens": 4, "top_k": 50, "top_p": 0.9, "temperature": 0.8, "seed": 1337}
    assert text_of(demo, "Is it?", grammar=grammar, **given) in ("true", "false")


def test_logits_processors_change_the_answer(demo: Llama) -> None:
    wanted = demo.tokenize(b"rot", add_bos=True, special=True)

    def prefer(input_ids: object, logits: np.ndarray[tuple[int], np.dtype[np.float32]]) -> object:
        logits[wanted] += 1000
        return logits

    given = {"max_tokens": 4, "top_k": 50, "top_p": 0.9, "temperature": 0.8, "seed": 1337}
    processors = llama_cpp.LogitsProcessorList([prefer])  # type: ignore[list-item]
    found = text_of(demo, PROMPT, logits_processor=processors, **given)
    assert set(demo.tokenize(found.encode(), add_bos=False)) <= set(wanted)


def test_a_state_restores_the_sequence_of_seeds(demo: Llama) -> None:
    grammar = "root ::= [0-9] [0-9] [0-9] [0-9] [0-9] [0-9] [0-9] [0-9]"

    def number() -> str:
        wide = {"temperature": 50.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        return text_of(demo, "A number:\n", max_tokens=16, grammar=grammar, **wide)

    demo.set_seed(1337)
    state = demo.save_state()
    one, two = number(), number()
    assert one != two
    demo.load_state(state)
    assert number() == one


def test_the_same_prompt_twice(demo: Llama) -> None:
    given = {"max_tokens": 6, "temperature": 0, "seed": 1337}
    assert [text_of(demo, PROMPT, **given) for _ in range(2)] == ["42", "42"]


# --- what is kept of an earlier prompt -------------------------------------------------------


KINDS = {
    "transformer": (write_tiny, False, False),
    "recurrent": (write_recurrent, True, False),
    "hybrid": (write_hybrid, False, True),
}


class Kind:
    """A model of one kind, opened as often as wanted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> Llama:
        return Llama(str(self.path), n_ctx=64, n_batch=64, n_ubatch=64, n_threads=1, verbose=False)

    def fresh(self, tokens: list[int]) -> list[int]:
        with self.open() as llm:
            return first(llm, tokens)


def first(llm: Llama, tokens: list[int]) -> list[int]:
    return list(islice(llm.generate(tokens, temp=0.0), 3))


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    write, is_recurrent, is_hybrid = KINDS[request.param]
    found = Kind(write(tmp_path_factory.mktemp("kinds") / f"{request.param}.gguf"))
    with found.open() as llm:
        assert (llm.model.is_recurrent, llm.model.is_hybrid) == (is_recurrent, is_hybrid)
    return found


def test_the_history_may_be_edited(kind: Kind) -> None:
    one, two = FOX, FOX.replace("quick", "slow")
    with kind.open() as llm, kind.open() as other:
        text_of(llm, one, max_tokens=1, temperature=0)
        expected = text_of(other, two, max_tokens=1, temperature=0)
        assert text_of(llm, two, max_tokens=1, temperature=0) == expected


def test_a_prompt_that_is_evaluated_already(kind: Kind) -> None:
    with kind.open() as llm:
        tokens = llm.tokenize(FOX.encode(), special=True)
        expected = kind.fresh(tokens)
        llm.eval(tokens)
        assert (llm.n_tokens, llm.input_ids[: llm.n_tokens].tolist()) == (len(tokens), tokens)
        assert llm.sample(temp=0.0, idx=len(tokens) - 1) == expected[0]
        found = first(llm, tokens)
        assert found == expected
        assert llm.n_tokens == len(tokens) + len(found) - 1


def test_a_prompt_of_a_restored_state(kind: Kind) -> None:
    with kind.open() as source, kind.open() as llm:
        tokens = source.tokenize(FOX.encode(), special=True)
        expected = kind.fresh(tokens)
        source.eval(tokens)
        state = source.save_state()
        llm.eval([*tokens[:-1], tokens[-1] ^ 1])  # what the state has to replace
        llm.load_state(state)
        assert (llm.n_tokens, llm.input_ids[: llm.n_tokens].tolist()) == (len(tokens), tokens)
        assert first(llm, tokens) == expected
        assert llm.n_tokens == len(tokens) + 2


def test_a_prompt_that_begins_what_is_evaluated(kind: Kind) -> None:
    with kind.open() as llm:
        tokens = llm.tokenize(FOX.encode(), special=True)
        expected = kind.fresh(tokens)
        llm.eval([*tokens, *llm.tokenize(b" jumps over the lazy dog", add_bos=False)])
        assert first(llm, tokens) == expected


def test_a_cache_in_memory_serves_another_model(kind: Kind) -> None:
    cache = llama_cpp.LlamaRAMCache()
    with kind.open() as fresh, kind.open() as writer, kind.open() as reader:
        tokens = fresh.tokenize(FOX.encode(), special=True)
        given = {"max_tokens": 1, "temperature": 0, "seed": 1337}
        expected = fresh.create_completion(tokens, **given)  # type: ignore[call-overload]
        writer.set_cache(cache)
        text_of(writer, tokens, **given)
        assert cache.cache_size > 0
        reader.set_cache(cache)
        found = reader.create_completion(tokens, **given)  # type: ignore[call-overload]
        assert found["choices"] == expected["choices"]
        for count in ("prompt_tokens", "completion_tokens"):
            assert found["usage"][count] == expected["usage"][count]


# --- embeddings ------------------------------------------------------------------------------


def test_embeddings_of_several_are_those_of_each(tmp_path: Path) -> None:
    path, _ = write_bert(tmp_path / "bert.gguf", pooling=gguf.PoolingType.CLS)
    with Llama(str(path), n_ctx=32, n_threads=1, flash_attn=True, embedding=True) as llm:
        texts = ["a b c", "d e f g h"]
        single = [llm.embed(text) for text in texts]
        assert len(single[0]) == llm.n_embd()
        np.testing.assert_allclose(llm.embed(texts), single, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(llm.embed(texts[::-1]), single[::-1], rtol=1e-4, atol=1e-4)


# --- grammars --------------------------------------------------------------------------------


def test_a_grammar_that_calls_itself(demo: Llama) -> None:
    tree = 'leaf ::= "."\nnode ::= leaf | "(" node node ")"\nroot ::= node\n'
    given = {"max_tokens": 200, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    found = text_of(demo, "A tree: ", grammar=LlamaGrammar.from_string(tree), seed=2, **given)
    while "(..)" in found:
        found = found.replace("(..)", ".")
    assert found == "."


@pytest.mark.parametrize(
    "schema",
    [
        {  # as pydantic writes a model inside another
            "$defs": {
                "A": {
                    "properties": {"a": {"title": "A", "type": "integer"}},
                    "required": ["a"],
                    "title": "A",
                    "type": "object",
                }
            },
            "properties": {
                "a": {"$ref": "#/$defs/A"},
                "b": {"title": "B", "type": "integer"},
            },
            "required": ["a", "b"],
            "title": "B",
            "type": "object",
        },
        {
            "type": "object",
            "properties": {
                "temperature": {"description": "In degrees.", "type": "number"},
                "unit": {
                    "anyOf": [
                        {"type": "string", "enum": ["celsius", "fahrenheit"]},
                        {"type": "null"},
                    ]
                },
            },
            "required": ["temperature", "unit"],
        },
    ],
)
def test_grammars_of_schemas(demo: Llama, schema: dict[str, object]) -> None:
    grammar = LlamaGrammar.from_json_schema(json.dumps(schema))
    # The penalty ends numbers and white space, however long they may be.
    given = {"max_tokens": 200, "temperature": 0, "frequency_penalty": 2.0}
    text = text_of(demo, "JSON: ", grammar=grammar, **given)
    jsonschema.validate(json.loads(text), schema)


# --- chat formats ----------------------------------------------------------------------------


TURNS = [
    {"role": "user", "content": "Instruction"},
    {"role": "assistant", "content": "Model answer"},
    {"role": "user", "content": "Follow-up instruction"},
]


def test_mistral_instruct_is_what_its_template_renders(demo: Llama) -> None:
    formatter = llama_chat_format.Jinja2ChatFormatter(MISTRAL, eos_token="</s>", bos_token="<s>")
    expected = formatter(messages=TURNS).prompt
    assert expected == (
        "<s>[INST] Instruction [/INST]Model answer</s>[INST] Follow-up instruction [/INST]"
    )
    handler = llama_chat_format.get_chat_completion_handler("mistral-instruct")
    handler(llama=demo, messages=TURNS, max_tokens=1)
    prompt = demo.detokenize(list(demo.eval_tokens), special=True).decode()
    body = expected.removeprefix("<s>").replace("</s>", demo.model.vocab.text(demo.token_eos()))
    assert prompt.removeprefix(demo.model.vocab.text(demo.token_bos())).startswith(body)


def test_a_formatter_of_a_tokenizers_configuration() -> None:
    config = {"chat_template": MISTRAL, "bos_token": "<s>", "eos_token": "</s>"}
    formatter = llama_chat_format.hf_tokenizer_config_to_chat_formatter(config)
    found = formatter(messages=[{"role": "user", "content": "Hello, world!"}])
    # llama-cpp-python appends an empty message of the assistant, whose `</s>` ends the prompt.
    assert found.prompt == "<s>[INST] Hello, world! [/INST]"
    assert found.added_special


# --- draft tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "expected"), [([1, 2, 3] * 3, [1, 2]), ([1, 2, 3, 4, 5, 6, 7, 8, 9], [])]
)
def test_prompt_lookup(tokens: list[int], expected: list[int]) -> None:
    find = llama_speculative.LlamaPromptLookupDecoding.find_candidate_pred_tokens
    found = find(np.array(tokens, np.int32), max_ngram_size=3, num_pred_tokens=2)
    assert found.tolist() == expected
