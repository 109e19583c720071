"""LlamaPredictor: batches of a Ray Data dataset, each answered at once.

Ray is never imported here: a predictor is an ordinary callable, and Ray makes one in each actor
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
_NOT_OF_A_ROW = ("stream", "n", "tools", "callback", "listens", "wait", "progress")


class LlamaPredictor:
    """Answers the rows of a batch at once; for `Dataset.map_batches`, which makes one per actor.

    All rows of a batch go to one `InferenceEngine`, which runs *n_parallel* of them in one step, so
    give it batches that are larger than that. The model is loaded once per actor.

        ds.map_batches(
            LlamaPredictor,
            fn_constructor_kwargs={"model_path": path, "options": {"max_tokens": 64}},
            batch_size=64,
            compute=ray.data.ActorPoolStrategy(size=2),
        )

    A batch is a dict of numpy arrays (Ray's default), a `pandas.DataFrame` or a `pyarrow.Table`;
    it comes back in its format with new columns, its rows in their order.

    Args:
        model_path: The GGUF file, or `hf:owner/repo:file`; the same on every machine.
        task: `generate` continues a text as it is, `chat` answers a conversation in OpenAI's shape
            or a question, `embed` gives a text's vector.
        input_column: Where the texts or conversations are.
        output_column: Where the answers go; None = `text`, or `embedding`.
        details: Add `finish_reason`, `prompt_tokens` and `completion_tokens`.
        parse: The answers are JSON, as `response_format` among the options made them; give what
            they say instead of the text.
        on_error: `raise` what is wrong with a row, or put it into the `error` column: None where
            nothing is. The answer of such a row is None, its vector NaN.
        n_parallel: Rows in a step, 2 to 256; each has n_ctx tokens of its own.
        options: How each row is answered: the arguments of `InferenceEngine.submit`, of
            `Llama.create_chat_completion` or of `Llama.embed`. They are tried once before the first
            batch. A `timeout_s` counts from the beginning of the batch.
        **config: The fields of `LlamaConfig`, such as `n_ctx`. With `n_threads` ask Ray for as
            many `num_cpus`: what it assigns is not looked at.

    Attributes:
        llm: The `Llama` below.

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
            raise ValidationError(f"task={task!r} is none of {', '.join(_TASKS)}")
        if on_error not in ("raise", "column"):
            raise ValidationError(f"on_error={on_error!r} is neither 'raise' nor 'column'")
        self._options = dict(options or {})
        if refused := sorted(self._options.keys() & set(_NOT_OF_A_ROW)):
            raise ValidationError(f"options {refused}: a row has one answer, and it is whole")
        if parse and (task != "chat" or not self._options.get("response_format")):
            raise ValidationError("parse=True needs task='chat' and a response_format in options")
        if details and task == "embed":
            raise ValidationError("details=True: a vector has none; leave it out with task='embed'")
        self._task, self._input = task, input_column
        self._output = output_column or _TASKS[task]
        self._details, self._parse = details, parse
        self._caught: tuple[type[LlamaError], ...] = (LlamaError,) if on_error == "column" else ()
        if task == "embed":
            self.llm = Llama(model_path, **{**config, "embeddings": True, "n_parallel": 1})
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
            ValidationError: It is none of these, has no such column, or a row is no text and no
                conversation (unless errors go into the column); or the predictor is closed.
            GenerationError: The engine has stopped, whatever *on_error* says.
        """
        cells = _cells(batch, self._input)
        rows = self._embed(cells) if self._task == "embed" else self._answers(cells)
        return _with_columns(batch, self._columns(rows))

    def close(self) -> None:
        """End what runs and free everything. Calling it again does nothing."""
        self.llm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Ray drops the object when its actor ends. Later the engine's thread would not answer.
        if hasattr(self, "llm") and not sys.is_finalizing():
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a loaded model cannot be sent to another process; give map_batches the class: "
            "map_batches(LlamaPredictor, fn_constructor_kwargs={'model_path': ...})"
        )

    def _try_options(self) -> None:
        """Answer a dummy row: wrong options are to blame on no row, and the first finds all warm.

        Raises:
            ValidationError: An option is wrong.
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
        except DecodeAbortedError:  # a short timeout_s, and everything was cold
            return

    def _begin(self, cell: Any, options: Mapping[str, Any], *, parse: bool) -> Callable[[], _Row]:
        """Let a row be answered; return what waits for it."""
        if self._task == "generate":
            if not isinstance(cell, str):
                raise ValidationError(f"{cell!r:.80} in {self._input!r} is no text")
            handle = self.llm.engine.submit(cell, wait=True, **options)  # type: ignore[union-attr]
            return partial(_generated, handle)
        prepared = self.llm.chat.prepare(_messages(cell), options, self.llm.model_path)
        runs = run(self.llm.engine, prepared.request)
        return partial(_chatted, partial(chat_completions.whole, prepared, runs), parse)

    def _answers(self, cells: Sequence[Any]) -> list[_Row]:
        """Answer all rows; when the error of one is raised the others are cancelled."""
        scope = CancelScope()
        try:
            with scope:
                begun = [
                    self._attempt(i, partial(self._begin, cell, self._options, parse=self._parse))
                    for i, cell in enumerate(cells)
                ]
            rows: list[_Row] = [
                wait if isinstance(wait, _Row) else self._attempt(i, wait)
                for i, wait in enumerate(begun)
            ]
        except BaseException:
            scope.cancel()
            raise
        if any(row.error for row in rows):
            self.llm.engine.start()  # type: ignore[union-attr]  # raises if it is no row's fault
        return rows

    def _attempt(self, index: int, call: Callable[[], Any]) -> Any:
        """Return what *call* returns, or its error as a row; what is raised names the row."""
        try:
            return call()
        except self._caught as error:
            return _Row(error=_said(error))
        except LlamaError as error:
            error.args = (f"row {index} of the batch: {error}", *error.args[1:])
            raise

    def _embed(self, cells: Sequence[Any]) -> list[_Row]:
        """Embed all rows in few batches, and one by one only to find those that are wrong."""
        try:
            return [_Row(vector) for vector in self.llm.embed(cells, **self._options)]
        except self._caught as error:
            if len(cells) == 1:
                return [_Row(error=_said(error))]
        return [row for cell in cells for row in self._embed([cell])]

    def _columns(self, rows: Sequence[_Row]) -> dict[str, Any]:
        import numpy as np

        columns: dict[str, Any] = {}
        if self._task == "embed":
            width = next((len(row.value) for row in rows if row.value), self.llm.model.n_embd_out)
            nothing = [np.nan] * width
            vectors = np.array([row.value or nothing for row in rows], np.float32)
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


class _Row(NamedTuple):
    """The answer to a row, or why there is none."""

    value: Any = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None


def _generated(handle: Any) -> _Row:
    text, stats = handle.result(), handle.stats
    return _Row(text, finish_reason(stats), stats.n_prompt, stats.n_generated)


def _chatted(wait: Callable[[], Any], parse: bool) -> _Row:
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
    return _Row(value, reason, usage["prompt_tokens"], usage["completion_tokens"])


def _said(error: LlamaError) -> str:
    return f"{type(error).__name__}: {error}"


def _messages(cell: Any) -> list[dict[str, Any]]:
    """Return a cell as messages, as they were before Arrow made all of one shape."""
    if isinstance(cell, str):
        return [{"role": "user", "content": cell}]
    found = _plain(cell)
    if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
        raise ValidationError(f"{cell!r:.80} is no text and no list of messages")
    return found


def _plain(value: Any) -> Any:
    """Return numpy's arrays as lists, and dicts without the keys that only other rows have."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if v is not None or k == "content"}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


# Batches: the three formats have a method each that the others lack.


def _cells(batch: Any, column: str) -> list[Any]:
    """Return a column as a list."""
    is_arrow = hasattr(batch, "set_column")
    if not (isinstance(batch, Mapping) or is_arrow or hasattr(batch, "assign")):
        raise ValidationError(
            f"a batch is a dict of numpy arrays, a DataFrame or a Table, no {type(batch).__name__}"
        )
    names = list(batch.column_names if is_arrow else batch)
    if column not in names:
        raise ValidationError(f"the batch has no column {column!r}, only {names}; see input_column")
    cells = batch[column]
    if is_arrow:
        cells = cells.to_pylist()
    return cells.tolist() if hasattr(cells, "tolist") else list(cells)


def _with_columns(batch: Any, columns: Mapping[str, Any]) -> Any:
    """Return a batch of the same format with these columns, too."""
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
    """Return an array of objects, also where they are lists of one length."""
    import numpy as np

    found = np.empty(len(values), object)
    found[:] = values
    return found
