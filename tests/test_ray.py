"""LlamaPredictor, called as Ray does but without Ray; ray_cluster.py uses a real cluster."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.children import Child

from llama_cffi import (
    Embedder,
    GenerationError,
    Llama,
    LlamaConfig,
    LlamaGrammar,
    Model,
    ModelLoadError,
    SamplingParams,
    ValidationError,
    demo,
)
from llama_cffi.ray import LlamaPredictor

SUMS = [(f"What is {a} + {b}?", str(a + b)) for a in range(11, 19) for b in (20, 31, 42)]
CONFIG: dict[str, Any] = {"n_ctx": 256, "n_threads": 1}
SCHEMA = {
    "type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
    "additionalProperties": False,
}  # fmt: skip
FORMAT = {"type": "json_object", "schema": SCHEMA}


def objects(*values: Any) -> Any:
    found = np.empty(len(values), object)
    found[:] = values
    return found


def predictor(task: str = "chat", **arguments: Any) -> LlamaPredictor:
    options = {} if task == "embed" else {"temperature": 0}
    arguments["options"] = {**options, **arguments.get("options", {})}
    return LlamaPredictor(demo.model_path(), task, **{**CONFIG, **arguments})


@pytest.fixture(scope="module")
def chat() -> Iterator[LlamaPredictor]:
    with predictor(on_error="column", details=True) as chat:
        yield chat


def test_batch_is_answered_together_and_in_order(chat: LlamaPredictor) -> None:
    batch = {"prompt": np.array([question for question, _ in SUMS]), "id": np.arange(len(SUMS))}
    found = chat(batch)
    assert list(found) == [
        "prompt", "id", "text", "finish_reason", "prompt_tokens", "completion_tokens", "error",
    ]  # fmt: skip
    assert list(found["text"]) == [answer for _, answer in SUMS]
    assert found["id"] is batch["id"]
    assert set(found["finish_reason"]) == {"stop"}
    assert found["prompt_tokens"].dtype == found["completion_tokens"].dtype == np.int64
    assert (found["prompt_tokens"] > 10).all()
    assert (found["completion_tokens"] >= 2).all()
    assert set(found["error"]) == {None}
    engine: Any = chat.llm.engine
    assert max(moment.n_running for moment in engine.timeline) > 4
    assert "text" not in batch


def test_generate_continues_text() -> None:
    prompts = ["The sun is", "One, two,", "A story", "Hello", "What"]
    with Llama(demo.model_path(), **CONFIG) as llm:
        alone = [llm.generate(prompt, 8, temperature=0) for prompt in prompts]
    columns = {"input_column": "question", "output_column": "answer"}
    with predictor("generate", options={"max_tokens": 8}, n_parallel=3, **columns) as generate:
        found = generate({"question": prompts})  # lists are accepted too
        assert list(found) == ["question", "answer"]
        assert list(found["answer"]) == alone
        assert list(generate({"question": np.array([], object)})["answer"]) == []


def test_conversations_as_arrow_returns_them(chat: LlamaPredictor) -> None:
    system = {"role": "system", "content": "Be brief.", "name": None}
    user = {"role": "user", "content": SUMS[0][0], "name": None}
    cells = objects(objects(system, user), objects(user), [user], SUMS[0][0], (user,))
    assert list(chat({"prompt": cells})["text"]) == [SUMS[0][1]] * 5


def test_errors_of_rows_go_into_a_column(chat: LlamaPredictor) -> None:
    question, answer = SUMS[0]
    wrong = [None, 3, ["a"], [], [{"content": "a"}], "long " * 400, {"role": "user"}]
    found = chat({"prompt": objects(question, *wrong, question)})
    assert list(found["text"]) == [answer, *[None] * len(wrong), answer]
    assert list(found["finish_reason"]) == ["stop", *[None] * len(wrong), "stop"]
    assert list(found["completion_tokens"] > 0) == [True, *[False] * len(wrong), True]
    assert found["error"][0] is found["error"][-1] is None
    for error, said in zip(
        found["error"][1:-1],
        ["a str or a list", "a str or", "a str or", "empty", "role", "no room", "a str or"],
        strict=True,
    ):
        assert error.startswith(("ValidationError: ", "TemplateError: ", "ContextOverflowError: "))
        assert said in error


@pytest.mark.parametrize("task", ["generate", "chat"])
def test_first_error_is_raised_and_cancels_the_rest(task: str) -> None:
    question = [{"role": "user", "content": "A story"}] if task == "chat" else "A story"
    with Model(demo.model_path(), vocab_only=True) as model:
        ends = [t for t in range(model.vocab.n_tokens) if model.vocab.is_eog(t)]
    endless = {"max_tokens": 200, "logit_bias": dict.fromkeys(ends, -1e3)}
    with predictor(task, n_parallel=2, options=endless) as raising:
        with pytest.raises(ValidationError, match=r"^row 5 of the batch: .*no room"):
            raising({"prompt": objects(*[question] * 5, "long " * 400, question)})
        with pytest.raises(ValidationError, match=r"^row 1 of the batch: None.* must be a str"):
            raising({"prompt": objects(question, None)})
        assert len(raising({"prompt": objects(question)})["text"]) == 1
        engine: Any = raising.llm.engine
        assert engine.stats.n_cancelled >= 5


def test_deadline_of_a_batch() -> None:
    options = {"timeout_s": 1e-6}
    with predictor("generate", on_error="column", options=options) as late:
        found = late({"prompt": ["a", "b"]})
        assert [error.split(":")[0] for error in found["error"]] == ["DeadlineExceededError"] * 2


def test_json_is_parsed() -> None:
    with predictor(parse=True, options={"response_format": FORMAT}, details=True) as parse:
        found = parse({"prompt": ["Hello", "What is 1 + 1?", "Hello"]})
        assert all(value in ({"a": 1}, {"a": 2}) for value in found["text"])
        assert found["text"].dtype == object
    options = {"response_format": FORMAT, "max_tokens": 2}
    with predictor(parse=True, options=options, on_error="column") as cut:
        found = cut({"prompt": ["Hello"]})
        assert found["text"][0] is None
        assert "ended (length) after 2 tokens" in found["error"][0]


def test_embeddings_equal_those_of_embedder() -> None:
    texts = ["One", "Two, three", "", "A longer text about nothing"]
    with Model(demo.model_path()) as model:
        expected = Embedder(model, pooling="mean", n_threads=1).embed(texts)
        width = model.n_embd_out
    with predictor("embed") as embed:
        found = embed({"prompt": np.array(texts), "id": [1, 2, 3, 4]})
        assert list(found) == ["prompt", "id", "embedding"]
        assert found["embedding"].dtype == np.float32
        np.testing.assert_allclose(found["embedding"], np.asarray(expected), atol=1e-6)
        assert embed({"prompt": []})["embedding"].shape == (0, width)
        with pytest.raises(ValidationError, match="text 1 must be a str or a list of token ids"):
            embed({"prompt": objects("a", None)})
    with predictor("embed", on_error="column", options={"normalize": False}) as embed:
        found = embed({"prompt": objects("a", None, "b")})
        assert [error is None for error in found["error"]] == [True, False, True]
        assert [bool(np.isnan(row).all()) for row in found["embedding"]] == [False, True, False]
        assert np.linalg.norm(found["embedding"][0]) > 1.01


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"task": "rank"}, "task='rank' must be one of generate, chat, embed"),
        ({"on_error": "ignore"}, "must be 'raise' or 'column'"),
        ({"n_parallel": 1}, "n_parallel=1 is outside 2..256"),
        ({"n_parallel": 257}, "outside 2..256"),
        ({"parse": True}, "response_format"),
        ({"task": "embed", "details": True}, "details"),
        ({"options": {"stream": True, "n": 2}}, r"options \['n', 'stream'\]"),
        ({"options": {"temperature": -1}, "on_error": "column"}, "temperature"),
        ({"options": {"max_tokens": 0}, "on_error": "column"}, "max_tokens"),
        ({"options": {"max_tokens": "9"}, "on_error": "column"}, "max_tokens"),
        ({"task": "chat", "options": {"max_tokens": 0}, "on_error": "column"}, "max_tokens"),
        ({"n_ctx": -1}, "n_ctx"),
    ],
)
def test_invalid_arguments_are_refused_by_the_constructor(arguments: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LlamaPredictor(demo.model_path(), **{**CONFIG, **arguments})


def test_unknown_arguments_are_type_errors() -> None:
    with pytest.raises(TypeError, match="n_context"):
        LlamaPredictor(demo.model_path(), n_context=3)
    with pytest.raises((TypeError, ValidationError), match="warmth"):
        predictor(options={"warmth": 3})
    with pytest.raises(ModelLoadError):
        LlamaPredictor("/nowhere.gguf")


def test_invalid_batches_are_refused(chat: LlamaPredictor) -> None:
    with pytest.raises(ValidationError, match=r"no column 'prompt', only \['text'\]"):
        chat({"text": ["a"]})
    for batch in (["a"], "a", None, np.array(["a"])):
        with pytest.raises(ValidationError, match="a batch must be a dict of numpy arrays"):
            chat(batch)


def test_error_of_the_engine_is_raised(monkeypatch: Any) -> None:
    with predictor("generate", on_error="column") as broken:

        def fail() -> None:
            raise MemoryError("no more")

        thread: Any = broken.llm.engine._thread
        monkeypatch.setattr(thread, "core", _Fails(thread.core, fail))
        with pytest.raises(GenerationError, match="stopped"):
            broken({"prompt": ["a", "b"]})


class _Fails:
    """An engine core whose steps raise."""

    def __init__(self, core: Any, step: Any) -> None:
        self._core, self.step = core, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


def test_options_can_be_pickled_but_not_a_loaded_model(chat: LlamaPredictor) -> None:
    arguments = {
        "options": {"sampling": SamplingParams(temperature=0, top_k=3), "stop": ["a"]},
        "config": LlamaConfig(n_ctx=256, n_threads=1),
    }
    sent = pickle.loads(pickle.dumps((LlamaPredictor, arguments)))
    with sent[0](demo.model_path(), **sent[1]) as there:
        assert there.llm.n_ctx == 256
        assert len(there({"prompt": ["The sun"]})["text"]) == 1
    grammar = pickle.loads(pickle.dumps(LlamaGrammar.from_choices(["yes", "no"])))
    with predictor(options={"grammar": grammar}) as limited:
        assert set(limited({"prompt": ["Well?", "So?"]})["text"]) <= {"yes", "no"}
    with pytest.raises(TypeError, match="give map_batches the class"):
        pickle.dumps(chat)


def test_close() -> None:
    closed = predictor("generate")
    closed.close()
    closed.close()
    with pytest.raises(ValidationError, match="closed"):
        closed({"prompt": ["a"]})
    dropped = predictor("generate")
    model = dropped.llm.model
    del dropped
    with pytest.raises(ValidationError, match="closed"):
        _ = model.chat_template


def test_open_predictor_does_not_block_exit(child: Child, tmp_path: Path) -> None:
    done = child("""
        import sys
        from llama_cffi import demo
        from llama_cffi.ray import LlamaPredictor

        kept = LlamaPredictor(demo.model_path(), "chat", n_ctx=256, n_threads=1)
        print(kept({"prompt": ["What is 11 + 20?"]})["text"][0])
        assert not {"ray", "pandas", "pyarrow"} & set(sys.modules)
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("31\n", "", 0)
