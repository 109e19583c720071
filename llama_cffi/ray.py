"""LlamaPredictor: batch inference on Ray Data datasets.

Ray is never imported here: a predictor is an ordinary callable, and Ray creates one in each actor
(https://docs.ray.io/en/latest/data/api/doc/ray.data.Dataset.map_batches.html).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from .api import chat_completions
from .api.llama import Llama
from .api.running import finish_reason, run
from .errors import DecodeAbortedError, LlamaError, ValidationError
from .generation.cancellation import CancelScope
from .validation import check_int

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LlamaPredictor"]

_TASKS = {"generate": "text", "chat": "text", "embed": "embedding"}
_UNSUPPORTED = ("stream", "n", "tools", "callback", "listens", "wait", "progress")


class LlamaPredictor:
    """Answers the rows of a batch together; a callable for `Dataset.map_batches`.

    All rows of a batch go to one `InferenceEngine`, which decodes *n_parallel* of them together, so
    batches should be larger than that. Each actor loads the model once.

        ds.map_batches(
            LlamaPredictor,
            fn_constructor_kwargs={"model_path": path, "options": {"max_tokens": 64}},
            batch_size=64,
            compute=ray.data.ActorPoolStrategy(size=2),
        )

    A batch is a dict of numpy arrays (Ray's default), a `pandas.DataFrame` or a `pyarrow.Table`.
    The result has the same format and row order, with new columns.

    Args:
        model_path: A GGUF file, or `hf:owner/repo:file`; the same on every machine.
        task: `generate` continues text without a chat template, `chat` answers a user message or a
            conversation in OpenAI's format, `embed` returns embeddings.
        input_column: Column of the texts or conversations.
        output_column: Column of the results; None: `text`, or `embedding`.
        details: Add the columns `finish_reason`, `prompt_tokens` and `completion_tokens`.
        parse: Return the parsed JSON instead of text; needs `response_format` in *options*.
        on_error: `raise`, or `column`: put a row's error into the column `error`, which is None for
            other rows. The row's answer is None then, its embedding NaN.
        n_parallel: Number of rows that are decoded together, 2 to 256, each with n_ctx tokens.
        options: Options for each row: arguments of `InferenceEngine.submit`,
            `Llama.create_chat_completion` or `Llama.embed`. They are checked on a dummy row first.
            `timeout_s` counts from the beginning of the batch.
        **config: The fields of `LlamaConfig`, such as `n_ctx`. With `n_threads`, request as many
            `num_cpus` from Ray, whose assignment is not read.

    Attributes:
        llm: The underlying `Llama`.

    Raises:
        ModelLoadError: The model cannot be loaded.
        ValidationError: An argument is out of range.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        task: str = "generate",
        *,
        input_column: str = "prompt",
        output_column: str | None = None,
        details: bool = False,
        parse: bool = False,
        on_error: str = "raise",
        n_parallel: int = 8,
        options: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> None:
        n_parallel = config.pop("parallel", n_parallel)
        if task not in _TASKS:
            raise ValidationError(f"task={task!r} must be one of {', '.join(_TASKS)}")
        if on_error not in ("raise", "column"):
            raise ValidationError(f"on_error={on_error!r} must be 'raise' or 'column'")
        self._options = dict(options or {})
        if refused := sorted(self._options.keys() & set(_UNSUPPORTED)):
            raise ValidationError(
                f"options {refused} are not supported: each row has one complete answer"
            )
        if parse and (task != "chat" or not self._options.get("response_format")):
            raise ValidationError("parse=True needs task='chat' and a response_format in options")
        if details and task == "embed":
            raise ValidationError("details=True is not supported with task='embed'")
        self._task, self._input = task, input_column
        self._output = output_column or _TASKS[task]
        self._details, self._parse = details, parse
        self._caught: tuple[type[LlamaError], ...] = (LlamaError,) if on_error == "column" else ()
        if task == "embed":
            config |= {"embeddings": True, "n_parallel": 1}
            self.llm = Llama(model_path, **config)
        else:
            self.llm = Llama(
                model_path, n_parallel=check_int("n_parallel", n_parallel, 2, 256), **config
            )
        try:
            self._try_options()
        except BaseException:
            self.close()
            raise

    def __call__(self, batch: Any) -> Any:
        """Return *batch* with the answers.

        Args:
            batch: A dict of numpy arrays, a `pandas.DataFrame` or a `pyarrow.Table`.

        Raises:
            ValidationError: The batch has another type or lacks the column, a row is neither text
                nor a conversation (unless errors go into the column), or the predictor is closed.
            GenerationError: The engine has stopped, with any *on_error*.
        """
        cells = _cells(batch, self._input)
        rows = self._embed(cells) if self._task == "embed" else self._answers(cells)
        return _with_columns(batch, self._columns(rows))

    def close(self) -> None:
        """End running generations and free everything. Calling it again does nothing."""
        self.llm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Ray drops the object when its actor ends. At interpreter exit the engine's thread is gone.
        if hasattr(self, "llm") and not sys.is_finalizing():
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a loaded model cannot be sent to another process; give map_batches the class: "
            "map_batches(LlamaPredictor, fn_constructor_kwargs={'model_path': ...})"
        )

    def _try_options(self) -> None:
        """Answer a dummy row, to check the options and warm up.

        Raises:
            ValidationError: An option is out of range.
        """
        if self._task == "embed":
            self.llm.embed(["warm up"], **self._options)
            return
        options, limit = self._options, self._options.get("max_tokens", 2)
        unlimited = (None, -1) if self._task == "chat" else ()
        if limit in unlimited or (isinstance(limit, int) and limit > 1):
            options = {**options, "max_tokens": 1}
        try:
            self._begin("warm up", options, parse=False)()
        except DecodeAbortedError:  # a short timeout_s, before the warm-up
            return

    def _begin(
        self, cell: Any, options: Mapping[str, Any], *, parse: bool
    ) -> Callable[[], _RowResult]:
        """Start answering a row; return a function that waits for the answer."""
        if self._task == "generate":
            if not isinstance(cell, str):
                raise ValidationError(f"{cell!r:.80} in column {self._input!r} must be a str")
            handle = self.llm.engine.submit(cell, wait=True, **options)  # type: ignore[union-attr]
            return partial(_text_row, handle)
        prepared = self.llm.chat.prepare(_messages(cell), options, self.llm.model_path)
        runs = run(self.llm.engine, prepared.request)
        return partial(_chat_row, partial(chat_completions.whole, prepared, runs), parse)

    def _answers(self, cells: Sequence[Any]) -> list[_RowResult]:
        """Answer all rows; an error that is raised cancels the others."""
        scope = CancelScope()
        try:
            with scope:
                started = [
                    self._attempt(i, partial(self._begin, cell, self._options, parse=self._parse))
                    for i, cell in enumerate(cells)
                ]
            rows: list[_RowResult] = [
                wait if isinstance(wait, _RowResult) else self._attempt(i, wait)
                for i, wait in enumerate(started)
            ]
        except BaseException:
            scope.cancel()
            raise
        if any(row.error for row in rows):
            self.llm.engine.start()  # type: ignore[union-attr]  # raises if the engine itself failed
        return rows

    def _attempt(self, index: int, call: Callable[[], Any]) -> Any:
        """Return the result of *call*, or its error as a row; a raised error names the row."""
        try:
            return call()
        except self._caught as error:
            return _RowResult(error=_message(error))
        except LlamaError as error:
            error.args = (f"row {index} of the batch: {error}", *error.args[1:])
            raise

    def _embed(self, cells: Sequence[Any]) -> list[_RowResult]:
        """Embed all rows together; one by one only after an error, to find its row."""
        try:
            return [_RowResult(vector) for vector in self.llm.embed(cells, **self._options)]
        except self._caught as error:
            if len(cells) == 1:
                return [_RowResult(error=_message(error))]
        return [row for cell in cells for row in self._embed([cell])]

    def _columns(self, rows: Sequence[_RowResult]) -> dict[str, Any]:
        import numpy as np

        columns: dict[str, Any] = {}
        if self._task == "embed":
            width = next((len(row.value) for row in rows if row.value), self.llm.model.n_embd_out)
            missing = [np.nan] * width
            vectors = np.array([row.value or missing for row in rows], np.float32)
            columns[self._output] = vectors.reshape(len(rows), width)
        else:
            columns[self._output] = _objects([row.value for row in rows])
        if self._details:
            columns["finish_reason"] = _objects([row.finish_reason for row in rows])
            for name in ("prompt_tokens", "completion_tokens"):
                columns[name] = np.array([getattr(row, name) for row in rows], np.int64)
        if self._caught:
            columns["error"] = _objects([row.error for row in rows])
        return columns


class _RowResult(NamedTuple):
    """The answer to one row, or its error."""

    value: Any = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None


def _text_row(handle: Any) -> _RowResult:
    text, stats = handle.result(), handle.stats
    return _RowResult(text, finish_reason(stats), stats.n_prompt, stats.n_generated)


def _chat_row(wait: Callable[[], Any], parse: bool) -> _RowResult:
    response = wait()
    choice, usage = response["choices"][0], response["usage"]
    value, reason = choice["message"]["content"], choice["finish_reason"]
    if parse:
        try:
            value = json.loads(value)
        except ValueError:
            raise ValidationError(
                f"the answer ended ({reason}) after {usage['completion_tokens']} tokens, before "
                f"its JSON did; raise max_tokens or n_ctx: {value!r:.200}"
            ) from None
    return _RowResult(value, reason, usage["prompt_tokens"], usage["completion_tokens"])


def _message(error: LlamaError) -> str:
    return f"{type(error).__name__}: {error}"


def _messages(cell: Any) -> list[dict[str, Any]]:
    """Return the messages of a cell, without what Arrow added to give all the same keys."""
    if isinstance(cell, str):
        return [{"role": "user", "content": cell}]
    found = _plain(cell)
    if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
        raise ValidationError(f"{cell!r:.80} must be a str or a list of messages")
    return found


def _plain(value: Any) -> Any:
    """Return numpy arrays as lists, and dicts without None values, which are missing keys."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if v is not None or k == "content"}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


# Each of the three batch formats is recognized by a method that the others lack.


def _cells(batch: Any, column: str) -> list[Any]:
    """Return a column as a list."""
    is_arrow = hasattr(batch, "set_column")
    if not (isinstance(batch, Mapping) or is_arrow or hasattr(batch, "assign")):
        raise ValidationError(
            "a batch must be a dict of numpy arrays, a DataFrame or a Table, got "
            f"{type(batch).__name__}"
        )
    names = list(getattr(batch, "column_names") if is_arrow else batch)  # noqa: B009
    if column not in names:
        raise ValidationError(f"the batch has no column {column!r}, only {names}; set input_column")
    cells = batch[column]
    if is_arrow:
        cells = cells.to_pylist()
    return cells.tolist() if hasattr(cells, "tolist") else list(cells)


def _with_columns(batch: Any, columns: Mapping[str, Any]) -> Any:
    """Return *batch* with *columns* added, in the same format."""
    if isinstance(batch, Mapping):
        return {**batch, **columns}
    if hasattr(batch, "assign"):
        return batch.assign(**{k: v if v.ndim == 1 else list(v) for k, v in columns.items()})
    for name, values in columns.items():
        if name in batch.column_names:
            batch = batch.drop_columns([name])
        batch = batch.append_column(name, [values.tolist()])
    return batch


def _objects(values: Sequence[Any]) -> Any:
    """Return an array of objects, even of lists of equal length."""
    import numpy as np

    found = np.empty(len(values), object)
    found[:] = values
    return found
