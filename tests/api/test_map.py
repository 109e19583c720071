"""`map`: typed answers to every row, kept in a file, in order, whatever ends the run."""

from __future__ import annotations

import asyncio
import enum
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas
import pydantic
import pytest

from llama_cffi import (
    CancelledError,
    ClosedError,
    Llama,
    LlamaPool,
    MapInterruptedError,
    Model,
    UnknownOptionError,
    ValidationError,
)
from llama_cffi.demo import model_path
from llama_cffi.llama_cpp import Llama as DropIn

OPTIONS: dict[str, Any] = {
    "n_ctx": 256, "n_threads": 1, "type_k": "f32", "type_v": "f32", "flash_attn": False,
}  # fmt: skip
NUMBERS = [11, 12, 13, 14, 15, 16]
SUM = "What is {} + 25?"
SUMS = [36, 37, 38, 39, 40, 41]
GREEDY: Any = {"temperature": 0, "max_tokens": 40}


@dataclass
class Person:
    """A person.

    Attributes:
        name: First name.
        tall: Whether tall.
    """

    name: str
    tall: bool


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Pair(pydantic.BaseModel):
    left: Literal["a", "b"]
    right: bool


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(model_path()) as model:
        yield model


@pytest.fixture(scope="module")
def llm(model: Model) -> Iterator[Llama]:
    with Llama(model, **OPTIONS) as llm:
        yield llm


@pytest.fixture(scope="module")
def pool(model: Model) -> Iterator[LlamaPool]:
    with LlamaPool(model, 3, **OPTIONS) as pool:
        yield pool


@pytest.fixture
def asked(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The messages of every chat completion that is prepared."""
    seen: list[str] = []
    prepare = llm.chat.prepare

    def recorded(messages: Any, *args: Any, **options: Any) -> Any:
        seen.append(messages[-1]["content"])
        return prepare(messages, *args, **options)

    monkeypatch.setattr(llm.chat, "prepare", recorded)
    return seen


# Faces


def test_every_face_gives_the_same_values_in_order(llm: Llama, pool: LlamaPool) -> None:
    found = {
        "Llama": llm.map(NUMBERS, int, SUM, **GREEDY),
        "Llama.map_async": asyncio.run(llm.map_async(NUMBERS, int, SUM, **GREEDY)),
        "LlamaPool": asyncio.run(pool.map(NUMBERS, int, SUM, **GREEDY)),
        "n_parallel": pool.llm.map(NUMBERS, int, SUM, **GREEDY),
    }
    with DropIn(str(model_path()), n_ctx=256, n_threads=1, verbose=False) as drop_in:
        found["llama_cpp"] = drop_in.map(NUMBERS, int, SUM, **GREEDY)
    assert {name: [*result] for name, result in found.items()} == dict.fromkeys(found, SUMS)
    assert all(result.errors == {} and len(result) == 6 for result in found.values())


def test_several_rows_share_batches(pool: LlamaPool) -> None:
    engine: Any = pool.llm.engine
    for run in (
        lambda: pool.llm.map(NUMBERS, int, SUM, **GREEDY),
        lambda: asyncio.run(pool.map(NUMBERS, int, SUM, **GREEDY)),
    ):
        before = len(engine.timeline)
        run()
        assert max(step.n_running for step in engine.timeline[before:]) == 3


def test_one_row_after_another_reuses_the_common_prefix(llm: Llama) -> None:
    llm.map(NUMBERS[:2], int, "Add these two numbers and answer with the sum: {} + 25", **GREEDY)
    stats: Any = llm.engine.stats
    assert stats.n_reused > stats.n_prompt - stats.n_reused


@pytest.mark.parametrize(
    "schema", [Person, Pair, Color, Literal["x", "y"], bool, tuple[Color, Color]]
)
def test_answers_have_the_type_that_parse_takes(llm: Llama, schema: Any) -> None:
    options: Any = {**GREEDY, "max_tokens": 100, "frequency_penalty": 1.0}
    (value,) = llm.map(["Answer."], schema, **options)
    assert value == llm.parse("Answer.", schema, **options)


def test_a_json_schema_gives_json(llm: Llama) -> None:
    schema = {"type": "object", "properties": {"sum": {"enum": [36, 37]}}, "required": ["sum"]}
    options: Any = {**GREEDY, "max_tokens": 120}
    result = llm.map(NUMBERS[:2], schema, SUM, **options)
    assert [list(value) for value in result] == [["sum"], ["sum"]]  # type: ignore[call-overload]
    assert result.records() == [*result]


# Rows and prompts


def test_prompts_are_filled_from_the_rows(llm: Llama, asked: list[str]) -> None:
    rows = [{"a": 1.5, "b": "{b}"}, {"a": float("nan"), "b": None}]
    llm.map(rows, bool, "{a} and {b}: {{{}}}", **GREEDY)
    assert asked[1:] == [
        '1.5 and {b}: {{"a": 1.5, "b": "{b}"}}',
        'None and None: {{"a": null, "b": null}}',
    ]
    asked.clear()
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    llm.map(["text", {"ä": [1, None]}, 7, talk], bool, **GREEDY)
    assert asked[1:] == ["text", '{"ä": [1, null]}', "7", "u"]
    asked.clear()
    llm.map([1, 2], bool, lambda n: f"<{n}>" if n == 1 else talk, **GREEDY)
    assert asked[1:] == ["<1>", "u"]
    asked.clear()
    llm.map(pandas.Series(["x"], name="review"), bool, "Good? {review}", **GREEDY)
    assert asked[1:] == ["Good? x"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("Extract the person.", r"the prompt has no place for the row; write \{\} into it"),
        ('JSON {"x": 1}: {}', r"names '\"x\"', which a row does not have; the row has a, b;"),
        ("{c}", r"the prompt names 'c', which a row does not have; the row has a, b;"),
        ("{} {1}", "cannot be filled"),
        ("{", r"cannot be parsed: .*; write \{\{ and \}\} for braces"),
        ("{a:d}", "cannot be filled with"),
        (7, "prompt must be callable|prompt"),
    ],
)
def test_a_wrong_prompt_is_refused_before_anything_is_computed(
    llm: Llama, asked: list[str], prompt: Any, message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        llm.map([{"a": "x", "b": 2}], bool, prompt)
    assert asked == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": "text"}, ValidationError, "rows must be a list or another iterable of rows"),
        ({"rows": 5}, ValidationError, "rows must be a list"),
        ({"rows": {"n": [1]}}, ValidationError, "rows is a dict; pass a list of rows"),
        ({"schema": {"type": "nonsense"}}, ValidationError, "nonsense"),
        ({"schema": 5}, ValidationError, "JSON has no values of 5"),
        ({"errors": "ignore"}, ValidationError, "errors"),
        ({"progress": 5}, ValidationError, "progress=5 must be a bool or a function"),
        ({"stream": True}, UnknownOptionError, "map has no option 'stream'"),
        ({"response_format": None}, ValidationError, "map does not support response_format"),
        ({"tools": [], "n": 2}, ValidationError, "map does not support n, tools"),
        ({"temprature": 0}, UnknownOptionError, "temperature"),
        ({"temperature": -1}, ValidationError, "temperature"),
    ],
)
def test_a_wrong_argument_is_refused_by_every_face(
    llm: Llama, pool: LlamaPool, change: Any, error: Any, message: str
) -> None:
    given: Any = {"rows": ["x"], "schema": bool, "prompt": None, **change}
    with pytest.raises(error, match=message):
        llm.map(**given)
    with pytest.raises(error, match=message):
        asyncio.run(pool.map(**given))


def test_no_rows_give_no_answers(llm: Llama, tmp_path: Path) -> None:
    result = llm.map([], Person, resume=tmp_path / "r.jsonl", progress=[].append)
    assert (len(result), [*result], result.records()) == (0, [], [])
    frame: Any = llm.map(pandas.Series([], dtype=str), Person).to_frame()
    assert (list(frame.columns), len(frame)) == (["name", "tall"], 0)


# Frames


def test_a_frame_has_the_index_of_the_rows(llm: Llama) -> None:
    table = pandas.DataFrame({"n": NUMBERS[:3]}, index=["x", "y", "y"])
    for rows, prompt in ((table, "What is {n} + 25?"), (table["n"], SUM)):
        frame: Any = llm.map(rows, int, prompt, **GREEDY).to_frame()
        assert type(frame) is pandas.DataFrame
        assert (list(frame.index), list(frame["result"])) == (["x", "y", "y"], SUMS[:3])
    people: Any = llm.map(table, Person, "{}", frequency_penalty=1.0, **GREEDY)
    joined = table.assign(**people.to_frame())
    assert list(joined.columns) == ["n", "name", "tall"]
    assert list(joined["name"]) == [person.name for person in people]
    assert joined["tall"].dtype == bool


def test_rows_without_an_answer_are_missing_in_the_frame(llm: Llama) -> None:
    rows = pandas.Series([11, None, 12], index=[5, 6, 7], dtype="Int64")
    result = llm.map(rows, int, SUM, errors="keep", **GREEDY)
    assert [*result] == [36, None, 37]
    assert str(result.errors[1]) == "row 1 is missing (<NA>)"
    frame: Any = result.to_frame()
    assert list(frame.index) == [5, 6, 7]
    assert list(frame["result"].isna()) == [False, True, False]
    assert result.records() == [{"result": 36}, {"result": None}, {"result": 37}]
    with pytest.raises(ValidationError, match="row 1 is missing"):
        llm.map(rows, int, SUM)


class PolarsFrame:
    """What `map` uses of polars.DataFrame."""

    def __init__(self, data: dict[str, list[Any]], *, strict: bool = True) -> None:
        assert all(isinstance(values, list) for values in data.values())
        self.data, self.strict = data, strict

    @property
    def columns(self) -> list[str]:
        return [*self.data]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data.values())

    def iter_rows(self, *, named: bool) -> Iterator[dict[str, Any]]:
        assert named
        rows = zip(*self.data.values(), strict=True)
        return (dict(zip(self.data, row, strict=True)) for row in rows)


class PolarsSeries:
    alias = None

    def __init__(self, name: str, values: list[Any]) -> None:
        self.name, self._values = name, values

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def to_frame(self) -> PolarsFrame:
        return PolarsFrame({self.name: self._values})


def test_a_frame_of_polars_gives_a_frame_of_polars(llm: Llama) -> None:
    for rows in (PolarsFrame({"n": NUMBERS[:2], "m": [1, 2]}), PolarsSeries("n", NUMBERS[:2])):
        frame: Any = llm.map(rows, int, "What is {n} + 25?", **GREEDY).to_frame()
        assert type(frame) is PolarsFrame
        assert (frame.data, frame.strict) == ({"result": SUMS[:2]}, False)

    class LazyFrame:
        collect = None

    with pytest.raises(ValidationError, match=r"a LazyFrame, a query; pass rows.collect\(\)"):
        llm.map(LazyFrame(), int)  # type: ignore[arg-type]


def test_other_collections_are_rows(llm: Llama, asked: list[str]) -> None:
    numbers = pandas.Index([11, 12])
    for rows in (numbers, numbers.to_numpy(), (n for n in (11, 12)), {11: 0, 12: 0}.keys()):
        assert [*llm.map(rows, int, SUM, **GREEDY)] == SUMS[:2]
    llm.map(numbers.to_numpy(), bool, **GREEDY)
    assert asked[-2:] == ["11", "12"]


def test_a_list_imports_no_library_of_frames(llm: Llama) -> None:
    code = """
        import sys
        from llama_cffi import Llama
        from llama_cffi.demo import model_path
        with Llama(model_path(), n_ctx=128, n_threads=1) as llm:
            result = llm.map(["Hi"], bool)
        assert not {"pandas", "polars", "tqdm"} & {*sys.modules}
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    with pytest.raises(ValidationError, match=r"write pandas.DataFrame\(result.records\(\)\)"):
        llm.map(["Hi"], bool, **GREEDY).to_frame()


# Errors


def test_an_error_of_a_row_is_raised_or_kept(llm: Llama, pool: LlamaPool) -> None:
    rows = [11, "x" * 2000, 12]
    for ask in (llm.map, pool.llm.map, lambda *a, **o: asyncio.run(pool.map(*a, **o))):
        result: Any = ask(rows, int, SUM, errors="keep", **GREEDY)
        assert [*result] == [36, None, 37]
        assert list(result.errors) == [1]
        assert "n_ctx" in str(result.errors[1])
        assert repr(result) == "<MapResult of 3 rows, 1 failed: [36, None, 37]>"
        with pytest.raises(ValidationError, match="n_ctx") as caught:
            ask(rows, int, SUM, **GREEDY)
        if sys.version_info >= (3, 11):
            assert caught.value.__notes__ == ["in row 1 of 3"]


def test_a_truncated_answer_and_a_failing_prompt_are_errors_of_their_rows(llm: Llama) -> None:
    result = llm.map(["a"], str, errors="keep", max_tokens=1, temperature=0)
    assert "truncated after 1 tokens" in str(result.errors[0])
    result2 = llm.map([11, 0], int, lambda n: f"What is {22 // n + n - 2} + 25?", errors="keep")
    assert isinstance(result2.errors[1], ZeroDivisionError)
    assert result2[0] == 36
    with pytest.raises(ZeroDivisionError):
        llm.map([0], int, lambda n: 1 // n)  # type: ignore[arg-type, return-value]


def test_a_closed_model_fails_the_call_and_not_each_row(model: Model) -> None:
    llm = Llama(model, **OPTIONS)
    llm.close()
    with pytest.raises(ClosedError):
        llm.map(NUMBERS, int, SUM, errors="keep")


# Progress


def test_progress_is_told_after_each_row_and_can_end_the_call(
    llm: Llama, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[float] = []
    llm.map([11, None, 12, 13], int, SUM, errors="keep", progress=seen.append, **GREEDY)
    assert seen == [0.25, 0.5, 0.75, 1.0]
    with pytest.raises(CancelledError, match="progress ended the map after 2 of 3 rows"):
        llm.map([11, 12, 13], int, SUM, progress=lambda done: done < 0.5, **GREEDY)
    llm.map([11], int, SUM, **GREEDY)
    assert capfd.readouterr() == ("", "")  # nobody looks
    llm.map([11], int, SUM, progress=True, **GREEDY)
    out, err = capfd.readouterr()
    assert out == ""
    assert "map: 100%" in err


# Resuming


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_second_run_computes_only_what_is_missing(
    llm: Llama, pool: LlamaPool, asked: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "sums.jsonl"
    first = llm.map(NUMBERS, int, SUM, resume=path, **GREEDY)
    assert [line["answer"] for line in lines(path)[1:]] == [str(n) for n in SUMS]
    text = path.read_bytes()
    # The process died while it wrote the fourth answer.
    path.write_bytes(text[: text.index(b'{"row": 3') + 14])
    asked.clear()
    seen: list[float] = []
    second = llm.map(NUMBERS, int, SUM, resume=str(path), progress=seen.append, **GREEDY)
    assert asked[1:] == [SUM.format(n) for n in NUMBERS[3:]]
    assert (seen[0], [*second], path.read_bytes()) == (0.5, [*first], text)
    asked.clear()
    assert [*llm.map(NUMBERS, int, SUM, resume=path, **GREEDY)] == SUMS
    assert asked[1:] == []
    assert [*asyncio.run(pool.map(NUMBERS, int, SUM, resume=path, **GREEDY))] == SUMS


def test_rows_that_failed_are_computed_again(llm: Llama, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    options: Any = {"resume": path, "errors": "keep", "temperature": 0}
    assert [*llm.map(NUMBERS, int, SUM, max_tokens=1, **options)] == [None] * 6
    assert len(lines(path)) == 1
    assert [*llm.map(NUMBERS, int, SUM, max_tokens=40, **options)] == SUMS


@pytest.mark.parametrize("is_interrupt", [False, True][: 2 if os.name == "posix" else 1])
def test_a_killed_run_is_resumed_with_the_same_result(
    llm: Llama, tmp_path: Path, is_interrupt: bool
) -> None:
    path = tmp_path / "r.jsonl"
    code = f"""
        import sys
        from llama_cffi import Llama
        from llama_cffi.demo import model_path
        with Llama(model_path(), **{OPTIONS}) as llm:
            llm.map({NUMBERS * 20}, int, {SUM!r}, resume=sys.argv[1], **{GREEDY})
        """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not path.exists() or path.read_bytes().count(b"\n") < 4:
        assert process.poll() is None
        time.sleep(0.01)
    if is_interrupt:
        process.send_signal(signal.SIGINT)
    else:
        process.kill()
    _, err = process.communicate()
    n = path.read_bytes().count(b"\n") - 1
    assert 3 <= n < 120
    if is_interrupt:
        assert f"{n} of 120 rows have answers: they are in {path}; the same call does the" in err
    rows = NUMBERS * 20
    assert [*llm.map(rows, int, SUM, resume=path, **GREEDY)] == SUMS * 20
    assert sorted(line["row"] for line in lines(path)[1:]) == [*range(120)]


def test_ctrl_c_keeps_the_answers_until_then(llm: Llama, pool: LlamaPool) -> None:
    for face in (llm, pool.llm):

        def interrupt(done: float) -> None:
            if done >= 0.5:
                raise KeyboardInterrupt

        with pytest.raises(MapInterruptedError, match="3 of 6 rows have answers") as caught:
            face.map(NUMBERS, int, SUM, progress=interrupt, **GREEDY)
        assert isinstance(caught.value, KeyboardInterrupt)
        assert [*caught.value.result] == [*SUMS[:3], None, None, None]
        assert face.map([11], int, SUM, **GREEDY)[0] == 36  # usable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [11, 12]}, "is of another number of rows: 3 then, 2 now"),
        ({"rows": [11, 12, 14]}, "is of another rows or prompts; name another file"),
        ({"prompt": "{} + 25"}, "is of another rows or prompts"),
        ({"schema": float}, "is of another schema"),
    ],
)
def test_a_file_of_another_run_is_refused(
    llm: Llama, tmp_path: Path, change: Any, message: str
) -> None:
    path = tmp_path / "r.jsonl"
    given: Any = {"rows": NUMBERS[:3], "schema": int, "prompt": SUM, "resume": path, **GREEDY}
    llm.map(**given)
    before = path.read_bytes()
    with pytest.raises(ValidationError, match=message):
        llm.map(**{**given, **change})
    assert path.read_bytes() == before


def test_a_file_of_another_model_is_refused(llm: Llama, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    llm.map(["x"], bool, resume=path, **GREEDY)
    with (
        Llama(tiny_model, n_ctx=256, n_threads=1) as other,
        pytest.raises(ValidationError, match=r"another model: .*\.gguf then, tiny\.gguf now; name"),
    ):
        other.map(["x"], bool, resume=path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: b"name,age\nAnna,31\n", "is not a file of `map`; name another file, or"),
        (lambda text: b"PK\x03\x04\xff", "is not a file of `map`"),
        (lambda text: text.replace(b'map": 1', b'map": 9'), "has version 9 of the format"),
        (lambda text: text.replace(b'"row": 1', b'"row" 1'), "line 3 is damaged; remove that line"),
        (lambda text: text.replace(b'"row": 1', b'"row": 7'), "line 3: there is no row 7"),
        (lambda text: text.replace(b'"37"', b'"x"'), "line 3: .*not valid JSON"),
        (lambda text: text.replace(b'"37"', b"37"), "line 3 is damaged"),
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(
    llm: Llama, tmp_path: Path, damage: Any, message: str
) -> None:
    path = tmp_path / "r.jsonl"
    llm.map(NUMBERS[:2], int, SUM, resume=path, **GREEDY)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(ValidationError, match=message):
        llm.map(NUMBERS[:2], int, SUM, resume=path, **GREEDY)
    assert path.read_bytes() == damaged


def test_cancelling_the_task_keeps_what_is_done(pool: LlamaPool, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"

    async def run() -> None:
        call = pool.map(NUMBERS * 30, int, SUM, resume=path, **GREEDY)
        task = asyncio.ensure_future(call)
        while not path.exists() or len(path.read_bytes().splitlines()) < 3:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    engine: Any = pool.llm.engine
    assert 2 <= len(lines(path)) - 1 < 180
    engine.generate([65], 1)
    assert engine.active_requests == []
