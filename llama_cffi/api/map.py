"""`map`: the same question about every row of a table, with typed answers in order."""

from __future__ import annotations

import asyncio
import hashlib
import json
import string
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, cast, overload

from ..decisions.inputs import is_conversation
from ..errors import (
    CancelledError,
    ClosedError,
    EngineDeadError,
    LlamaError,
    TemplateError,
    ValidationError,
)
from ..progress import Progress, is_shown_live, reporting
from ..schema import json_schema, parse_json
from ..validation import as_path, check_callable, check_choice, shown
from . import chat_completions
from .resume_file import ResumeFile
from .running import is_shared, run
from .structured import json_format, json_text
from .table import Table, is_missing, read_table

if TYPE_CHECKING:
    import os
    from collections.abc import Generator

    from typing_extensions import Self

    from ..generation.sequence import Step
    from ..generation.stats import GenerationStats
    from .chat_completions import Message, PreparedChat
    from .llama import Llama
    from .types import CreateChatCompletionResponse

__all__ = [
    "ErrorPolicy",
    "MapInterruptedError",
    "MapJob",
    "MapOptions",
    "MapPrompt",
    "MapResult",
    "map_rows",
    "map_rows_async",
]

T = TypeVar("T")
ErrorPolicy: TypeAlias = Literal["raise", "keep"]
#: A template with {} or {column}, or a function from a row to a prompt or messages; None: the row.
MapPrompt: TypeAlias = "str | Callable[[Any], str | Sequence[Message]] | None"

_OF_MAP = frozenset((
    "n", "response_format", "grammar", "structured", "tools", "tool_choice", "functions",
    "function_call",
))  # fmt: skip
_FATAL = (ClosedError, EngineDeadError, CancelledError)
_VALUE = "result"  # the column of answers that are not objects
_PER_SEQUENCE = 4  # requests in the engine for each sequence: a long answer stops no other


class MapResult(Sequence["T | None"], Generic[T]):
    """The answers to all rows, in their order; None where there is none.

    Args:
        values: The answers.
        errors: Row -> error.
        documents: The answers as JSON types.
        columns: Names of the columns that are known from the schema.
        table: The rows.

    Attributes:
        errors: Row -> why it has no answer; rows that an interrupted run did not reach are missing.
    """

    def __init__(
        self,
        values: Sequence[T | None],
        errors: Mapping[int, Exception],
        documents: Sequence[object],
        columns: Sequence[str],
        table: Table,
    ) -> None:
        self._values, self.errors = [*values], dict(errors)
        self._documents, self._columns, self._table = documents, columns, table

    @overload
    def __getitem__(self, index: int) -> T | None: ...

    @overload
    def __getitem__(self, index: slice) -> list[T | None]: ...

    def __getitem__(self, index: int | slice) -> T | list[T | None] | None:
        return self._values[index]

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[T | None]:
        return iter(self._values)

    def __repr__(self) -> str:
        failed = f", {len(self.errors)} failed" if self.errors else ""
        return f"<MapResult of {len(self)} rows{failed}: {shown(self._values)}>"

    def records(self) -> list[dict[str, object]]:
        """Return the answers as dicts of JSON types, with all columns in each.

        Answers that are not objects are in the column `result`.
        """
        columns = dict.fromkeys(self._columns)
        records = [
            {str(key): value for key, value in document.items()}
            if isinstance(document, Mapping)
            else ({} if document is None else {_VALUE: document})
            for document in self._documents
        ]
        for record in records:
            columns.update(dict.fromkeys(record))
        names = [*columns] or [_VALUE]
        return [{name: record.get(name) for name in names} for record in records]

    def to_frame(self) -> object:
        """Return the `records` as a DataFrame of the library that the rows came from.

        It has the index of the rows, so that `df.join(result.to_frame())` puts them beside the
        answers; in polars, `df.hstack(result.to_frame())`.

        Raises:
            ValidationError: The rows were no Series or DataFrame.
        """
        records = self.records()
        names = records[0] if records else self._columns or [_VALUE]
        return self._table.frame({name: [record[name] for record in records] for name in names})


class MapInterruptedError(KeyboardInterrupt):
    """Ctrl-C ended a `map`.

    Args:
        message: How many rows have answers, and where they are.
        result: The answers until then.

    Attributes:
        result: The answers until then; in the next cell of a notebook, `sys.last_value.result`.
    """

    def __init__(self, message: str, result: MapResult[object]) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class MapOptions:
    """How a `map` runs, besides the options of its chat completions; see `Llama.map`."""

    resume: str | os.PathLike[str] | None = None
    errors: ErrorPolicy = "raise"
    progress: Progress = None


class MapJob(Generic[T]):
    """One `map`: its prompts, its answers so far, and where they are kept.

    A context manager; answers are taken inside of its block.

    Args:
        llm: The model, for its names and to check the options.
        rows: See `Llama.map` for the arguments and errors.
        schema: See `Llama.map`.
        prompt: See `Llama.map`.
        how: See `Llama.map`.
        options: The `ChatCompletionOptions`.

    Attributes:
        options: Those of each chat completion.
        pending: The rows that have no answer yet.
    """

    def __init__(
        self,
        llm: Llama,
        rows: Iterable[object],
        schema: type[T] | Mapping[str, object],
        prompt: MapPrompt,
        how: MapOptions,
        options: Mapping[str, object],
    ) -> None:
        check_choice("errors", how.errors, ("raise", "keep"))
        if taken := _OF_MAP.intersection(options):
            raise ValidationError(f"map does not support {', '.join(sorted(taken))}")
        self._how, self._table = how, read_table(rows)
        self._read: Callable[[str], Any]
        if isinstance(schema, Mapping):
            self._schema, self._read = schema, json.loads
        else:
            self._schema, self._read = json_schema(schema), partial(parse_json, schema)
        self.options: Any = {**options, "response_format": json_format(self._schema)}
        self._errors: dict[int, Exception] = {}
        self._answers: dict[int, str] = {}
        self._messages = self._render(prompt)
        with suppress(TemplateError):  # options and schema are checked before they fail every row
            llm.chat.prepare([{"role": "user", "content": "?"}], self.options)
        self._file: ResumeFile | None = None
        if how.resume is not None:
            path = as_path("resume", how.resume)
            self._file = ResumeFile(path, self._head(llm), self._read)
            self._answers = self._file.answers
        self.pending = [i for i in self._messages if i not in self._answers]
        self._n_done = self.n_rows - len(self.pending)
        self._exit = ExitStack()

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self._table.rows)

    def messages(self, row: int) -> Sequence[Message]:
        """Return the conversation about a row."""
        return self._messages[row]

    def __enter__(self) -> Self:
        how = self._how
        with ExitStack() as stack:
            if self._file is not None:
                stack.callback(self._file.close)
            progress = is_shown_live() if how.progress is None else how.progress
            self._report = stack.enter_context(reporting(progress, "map"))
            self._tell()
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit.__exit__(*error)

    def take(self, row: int, answer: CreateChatCompletionResponse) -> None:
        """Keep the answer to a row.

        Raises:
            LlamaError: It is none, and such errors are raised.
            CancelledError: The progress function returned False.
        """
        try:
            text = json_text(answer)
            self._read(text)
        except ValidationError as error:
            self.fail(row, error)
            return
        self._answers[row] = text
        if self._file is not None:
            self._file.add(row, text)
        self._end_row()

    def fail(self, row: int, error: Exception) -> None:
        """Keep the error of a row, or raise it.

        Raises:
            LlamaError: The error, if errors are raised, or if it is not of this row alone.
        """
        if self._how.errors == "raise" or isinstance(error, _FATAL):
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"in row {row} of {self.n_rows}")
            raise error
        self._errors[row] = error
        self._end_row()

    def result(self) -> MapResult[T]:
        """Return the answers so far."""
        rows = range(self.n_rows)
        texts = [self._answers.get(i) for i in rows]
        properties = self._schema.get("properties")
        return MapResult(
            [None if text is None else self._read(text) for text in texts],
            dict(sorted(self._errors.items())),
            [None if text is None else json.loads(text) for text in texts],
            [*properties] if isinstance(properties, Mapping) else [],
            self._table,
        )

    def interrupted(self) -> MapInterruptedError:
        """Return what a Ctrl-C raises."""
        n = len(self._answers)
        kept = (
            f"they are in {self._file.path}; the same call does the rest"
            if self._file is not None
            else "they are the result of this exception; with resume=PATH, the same call would do "
            "the rest"
        )
        message = f"{n} of {self.n_rows} rows have answers: {kept}"
        return MapInterruptedError(message, cast("MapResult[object]", self.result()))

    def _end_row(self) -> None:
        self._n_done += 1
        self._tell()

    def _tell(self) -> None:
        done = self._n_done / self.n_rows if self.n_rows else 1.0
        if not self._report(done):
            raise CancelledError(
                f"progress ended the map after {self._n_done} of {self.n_rows} rows"
            )

    def _render(self, prompt: MapPrompt) -> dict[int, Sequence[Message]]:
        """Return the conversations about the rows; those that fail are errors."""
        fill = _Template(prompt, self._table.name) if isinstance(prompt, str) else prompt
        if fill is not None:
            check_callable("prompt", fill)
        found: dict[int, Sequence[Message]] = {}
        for i, row in enumerate(self._table.rows):
            try:
                if is_missing(row):
                    raise ValidationError(f"row {i} is missing ({row!r})")
                found[i] = _conversation(row if fill is None else fill(row))
            except Exception as error:
                self._keep_unrendered(i, error)
        return found

    def _keep_unrendered(self, row: int, error: Exception) -> None:
        if self._how.errors == "raise":
            raise error
        self._errors[row] = error

    def _head(self, llm: Llama) -> dict[str, object]:
        adapters = [[Path(name).name, scale] for name, scale in sorted(llm.adapters.items())]
        return {
            "model": f"{llm.model.path.name} #{_digest([llm.model.fingerprint, adapters])}",
            "schema": f"#{_digest(self._schema)}",
            "n_rows": self.n_rows,
            "inputs": f"#{_digest([self._messages.get(i) for i in range(self.n_rows)])}",
        }


class _Template:
    """A prompt with places for a row, in the syntax of `str.format`.

    Args:
        text: The prompt.
        name: The name of the Series that the rows come from.

    Raises:
        ValidationError: It cannot be parsed, or has no place for the row.
    """

    def __init__(self, text: str, name: str | None) -> None:
        self._text, self._name = text, name
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(text)]
        except ValueError as e:
            raise ValidationError(
                f"the prompt cannot be parsed: {e}; write {{{{ and }}}} for braces that stay"
            ) from None
        if not any(field is not None for field in fields):
            raise ValidationError(
                f"the prompt has no place for the row; write {{}} into it, or {{column}} for a "
                f"column of a table: {shown(text)}"
            )

    def __call__(self, row: object) -> str:
        names: dict[str, object] = {} if self._name is None else {self._name: row}
        if isinstance(row, Mapping):
            names = {str(key): None if is_missing(value) else value for key, value in row.items()}
        try:
            return string.Formatter().vformat(self._text, (_text(row),), names)
        except (KeyError, IndexError) as e:
            known = f"; the row has {', '.join(names)}" if names else ""
            raise ValidationError(
                f"the prompt names {e.args[0]!r}, which a row does not have{known}; the whole row "
                "is {}, and braces that stay are {{ and }}"
            ) from None
        except (ValueError, TypeError, AttributeError) as e:
            raise ValidationError(f"the prompt cannot be filled with {shown(row)}: {e}") from None


def _conversation(made: object) -> Sequence[Message]:
    return made if is_conversation(made) else [{"role": "user", "content": _text(made)}]


def _text(row: object) -> str:
    """Return a row as text: a str itself, everything else as JSON."""
    return row if isinstance(row, str) else json.dumps(_plain(row), ensure_ascii=False)


def _plain(value: Any) -> object:
    """Return JSON types: None for what is missing, text for dates and other objects."""
    if is_missing(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (str, int, float)):
        return value
    if hasattr(value, "tolist"):  # of numpy
        return _plain(value.tolist())
    return str(value)


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


_Started: TypeAlias = "tuple[int, PreparedChat, list[Generator[Step, None, GenerationStats]]]"


def map_rows(llm: Llama, job: MapJob[T]) -> MapResult[T]:
    """Answer the rows of a job: several together where the engine can, else one by one.

    Raises:
        MapInterruptedError: By Ctrl-C.
        LlamaError: As `MapJob.fail` raises it.
    """
    engine = llm.engine
    most = _PER_SEQUENCE * llm.config.n_parallel if is_shared(engine) else 1
    started: deque[_Started] = deque()
    try:
        with job:
            for row in job.pending:
                try:
                    prepared = llm.chat.prepare(job.messages(row), job.options)
                    started.append((row, prepared, run(engine, prepared.request)))
                except LlamaError as error:
                    job.fail(row, error)
                if len(started) >= most:
                    _collect(job, started)
            while started:
                _collect(job, started)
            return job.result()
    except KeyboardInterrupt:
        raise job.interrupted() from None
    finally:
        started.clear()  # what still runs is cancelled with its iterator


def _collect(job: MapJob[T], started: deque[_Started]) -> None:
    row, prepared, runs = started.popleft()
    try:
        answer = chat_completions.whole(prepared, runs)
    except LlamaError as error:
        job.fail(row, error)
    else:
        job.take(row, answer)


async def map_rows_async(llm: Llama, job: MapJob[T]) -> MapResult[T]:
    """Call `map_rows` in an event loop. Cancelling the task cancels its requests."""
    rows = iter(job.pending)

    async def work() -> None:
        for row in rows:
            try:
                ask = llm.create_chat_completion_async
                answer = await ask(job.messages(row), **job.options)
            except LlamaError as error:
                job.fail(row, error)
            else:
                job.take(row, answer)

    n_workers = 2 * llm.config.n_parallel if is_shared(llm.engine) else 1
    with job:
        tasks = [asyncio.ensure_future(work()) for _ in range(n_workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return job.result()
