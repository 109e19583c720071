"""`%llama` loads a model and sets options; `%%llama` answers the prompt in its cell."""

from __future__ import annotations

import argparse
import json
import shlex
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import ArgDecorator, magic_arguments

from ..api.structured import json_format
from ..cli import options
from ..errors import LlamaError
from . import html, views
from .collector import Collector
from .display import Shown, show
from .live import Live

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ..api.llama import Llama
    from ..media import Audio, Image

__all__ = ["LlamaMagics"]

_NAME = "llama"
_DEFAULT_NAME = "llm"
_DEMO = "demo"
F = TypeVar("F", bound=Callable[..., object])


class _Options(ArgDecorator):
    """Adds options that functions declare, as those of the command line do."""

    def __init__(self, add: Sequence[Callable[[Any], object]]) -> None:
        self._add = add

    def add_to_parser(self, parser: Any, group: Any) -> None:
        """Add them; IPython calls it."""
        for add in self._add:
            add(parser)


def _magic(kind: Any, *add: Callable[[Any], object]) -> Callable[[F], F]:
    """Make a method the line or cell magic `llama`, with options of its own."""

    def decorate(method: F) -> F:
        found: Any = method
        finish: Any = magic_arguments  # IPython's decorators have no types
        for decorator in (kind(_NAME), _Options(add), finish(_NAME)):
            found = decorator(found)
        return found  # type: ignore[no-any-return]

    return decorate


def _add_load(parser: Any) -> None:
    parser.add_argument(
        "model", nargs="?",
        help="a GGUF file, hf:OWNER/REPO[:FILE or QUANT], or demo: the included demo model",
    )  # fmt: skip
    parser.add_argument(
        "--as", dest="name", metavar="NAME", help="the variable with the model; default: llm"
    )


def _add_ask(parser: Any) -> None:
    parser.add_argument(
        "--as", dest="name", metavar="NAME",
        help="keep the response, or with --schema the value, in this variable",
    )  # fmt: skip
    parser.add_argument(
        "-m", "--model", metavar="NAME",
        help="the variable with the model; default: what %%llama loaded last",
    )  # fmt: skip
    parser.add_argument(
        "--schema", metavar="NAME|FILE",
        help="JSON that matches a Python type, or a JSON Schema in a variable or a file",
    )  # fmt: skip
    parser.add_argument(
        "--messages", metavar="NAME",
        help="continue the conversation in this variable, a list of messages, which is made if it "
        "does not exist",
    )  # fmt: skip
    parser.add_argument(
        "--image", dest="images", action="append", default=[], metavar="NAME|FILE",
        help="a picture before the prompt: a variable (of Pillow, an array, bytes, a path), a "
        "file, or an https address; several times for several",
    )  # fmt: skip
    parser.add_argument(
        "--audio", dest="sounds", action="append", default=[], metavar="NAME|FILE",
        help="a sound before the prompt: a variable (an Audio, bytes, a path) or a WAV file",
    )  # fmt: skip
    parser.add_argument(
        "-e", "--expand", action="store_true",
        help="replace {name} in the prompts by the variable",
    )  # fmt: skip


def _add_answer(parser: Any) -> None:
    parser.add_argument("-s", "--system", metavar="TEXT", help="the system prompt")
    parser.add_argument(
        "-n", "--max-tokens", type=options.at_least(-1), metavar="N",
        help="most tokens of an answer; -1 (default): until the model ends it",
    )  # fmt: skip
    parser.add_argument(
        "--stop", action="append", metavar="TEXT",
        help="end the answer before this text; several times for several",
    )  # fmt: skip
    parser.add_argument(
        "--stream", action=argparse.BooleanOptionalAction,
        help="show the answer while it is generated (default)",
    )  # fmt: skip
    parser.add_argument(
        "--logprobs", type=options.at_least(0), metavar="N",
        help="show the probability of each token, and of the N most probable ones",
    )  # fmt: skip


_ANSWER = (_add_answer, options.add_sampling, options.add_thinking)


class _Schema(NamedTuple):
    """What an answer must match, and how its value is made of the text."""

    schema: Mapping[str, Any]
    parse: Callable[[str], object]


@magics_class
class LlamaMagics(Magics):
    """The magics of `%load_ext llama_cffi`.

    Args:
        shell: IPython's shell.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._variables: dict[str, Any] = shell.user_ns
        self._target: str = _DEFAULT_NAME
        # Weak: `del llm` and `llm = ...` free a model as everywhere.
        self._loaded: weakref.WeakValueDictionary[str, Llama] = weakref.WeakValueDictionary()
        self._settings: dict[str, Any] = {}

    @_magic(line_magic, _add_load, *_ANSWER, options.add_running)
    def load(self, line: str) -> Shown | None:
        """Load a model, in place of the one that this loaded before, or set options of answers.

        Without a model it sets the options, and shows what is set.
        """
        args = _parsed(self.load, line)
        given = _answer_options(args)
        with _short_errors():
            if args.model is None:
                if ignored := options.running_options(_with_model(args, "")):
                    field = next(iter(ignored))
                    raise UsageError(f"{field} is an option of loading; name the model, too")
                if args.name:
                    self._target = args.name
                self._settings.update(given)
                return self._state()
            self._settings = given
            self._target = args.name or _DEFAULT_NAME
            self._load(args)
        return None

    @no_var_expand
    @_magic(cell_magic, _add_ask, *_ANSWER)
    def ask(self, line: str, cell: str) -> None:
        """Answer the prompt in the cell."""
        args = _parsed(self.ask, line)
        settings = {**self._settings, **_answer_options(args)}
        prompt, system = cell.strip("\n"), settings.pop("system", "")
        if args.expand:
            prompt, system = self._expanded(prompt), self._expanded(system)
        if not prompt.strip():
            raise UsageError("the cell is empty; write the prompt below the line with %%llama")
        with _short_errors():
            llm = self._model(args.model)
            schema = None if args.schema is None else self._schema(args.schema)
            if schema is not None:
                settings["response_format"] = json_format(schema.schema)
            history = self._history(args.messages)
            media = [
                self._media(kind, name)
                for kind, names in (("image", args.images), ("audio", args.sounds))
                for name in names
            ]
            content = [*media, {"type": "text", "text": prompt}] if media else prompt
            asked = {"role": "user", "content": content}
            first = [{"role": "system", "content": system}]
            if not system or (history and history[0]["role"] == "system"):
                first = []
            answer = Collector()
            try:
                self._answer(llm, [*first, *history, asked], settings, answer)
            finally:
                # What came before the stop button, too.
                if args.messages and answer.text:
                    history += [asked, {"role": "assistant", "content": answer.text}]
                if args.name and schema is None:
                    self._variables[args.name] = answer.response()
            if schema is not None:
                value = _value(schema, answer)
                if args.name:
                    self._variables[args.name] = value

    # Models

    def _load(self, args: argparse.Namespace) -> None:
        from ..api.llama import Llama
        from ..demo import model_path
        from ..hub import resolve_model

        name = self._target
        is_demo = args.model == _DEMO
        running = options.running_options(_with_model(args, None if is_demo else args.model))
        path = model_path() if is_demo else resolve_model(args.model)
        # Only now: a misspelt name costs no model. And before loading: both may not fit.
        if (before := self._loaded.pop(name, None)) is not None:
            before.close()
        title = f"loading {path.name}"
        live = Live(Shown(html.block(html.dim(title)), title))

        def report(done: float) -> bool:
            bar = f"{html.dim(title)} {html.bar(done)}"
            live.update(lambda: Shown(html.block(bar), f"{title}: {done:.0%}"))
            return True

        started = time.perf_counter()
        llm = Llama(path, progress=report, **running)
        seconds = time.perf_counter() - started
        self._loaded[name] = self._variables[name] = llm
        live.finish(self._state(f"{seconds:.1f} s"))

    def _model(self, name: str | None) -> Llama:
        from ..api.llama import Llama

        name = name or self._target
        llm = self._variables.get(name)
        if not isinstance(llm, Llama):
            what = f"{name} is a {type(llm).__name__}" if llm is not None else "no model is loaded"
            raise UsageError(f"{what}; load one: %llama MODEL, or %llama demo")
        return llm

    def _state(self, loaded_in: str = "") -> Shown:
        """Return the model and the options."""
        found: dict[str, object] = {}
        llm = self._variables.get(self._target)
        if llm is not None and not getattr(llm, "closed", True):
            model = llm.model
            found = {
                "model": model.path.name,
                "type": f"{model.description}, {model.n_params / 1e6:,.0f} M parameters, "
                f"{model.size_bytes / 2**20:,.0f} MiB",
                "context": f"{int(llm.n_ctx):,} tokens",
                "threads": llm.engine.context.n_threads,
                "loaded in": loaded_in,
            }
        found |= {name.replace("_", " "): value for name, value in self._settings.items()}
        found = {name: value for name, value in found.items() if value != ""}
        state = "is open" if "model" in found else "no model is loaded: %llama MODEL"
        head = f"{self._target}: {state}"
        text = "\n".join([head, *(f"  {name}: {value}" for name, value in found.items())])
        return Shown(html.block(html.dim(head), views.fields(found)), text)

    # Answers

    def _answer(
        self, llm: Llama, messages: list[Any], settings: dict[str, Any], answer: Collector
    ) -> None:
        """Collect the answer and show it."""
        from ..api.chat_completions import Extensions, stream
        from ..api.running import run

        asked = {**settings, "stream_options": {"include_usage": True}}
        is_live = asked.pop("stream", True)
        prepared = llm.chat.prepare(messages, asked, llm.model_path, stream=True)
        timed = Extensions(timings=True, timings_per_token=True)
        prepared = replace(prepared, extensions=timed)
        live = Live(Shown(html.block(html.dim("…")), "…"))
        try:
            chunks: Any = stream(prepared, run(llm.engine, prepared.request))
            with closing(chunks):
                for chunk in chunks:
                    answer.add(chunk)
                    if is_live:
                        live.update(lambda: Shown(views.unfinished(answer.message), answer.text))
        finally:
            live.finish(show(answer.response()))

    def _schema(self, name: str) -> _Schema:
        from ..schema import json_schema, parse_json

        found = self._variables.get(name)
        if isinstance(found, Mapping):
            return _Schema(found, json.loads)
        if found is not None:
            type_: Any = found
            return _Schema(json_schema(type_), lambda text: parse_json(type_, text))
        try:
            return _Schema(json.loads(Path(name).read_text(encoding="utf-8")), json.loads)
        except OSError as e:
            raise UsageError(f"--schema {name}: no variable and no file: {e.strerror}") from None
        except ValueError as e:
            raise UsageError(f"--schema {name}: the file is not JSON: {e}") from None

    def _media(self, kind: str, name: str) -> Image | Audio:
        """Return the picture or sound in a variable, a file or at an address."""
        from ..media import load_audio, load_image

        found = self._variables.get(name)
        if found is None:
            found = name if "://" in name else Path(name)
        return load_image(found, where=name) if kind == "image" else load_audio(found, where=name)

    def _history(self, name: str | None) -> list[Any]:
        """Return the messages in a variable, which is made if it does not exist."""
        if name is None:
            return []
        found = self._variables.setdefault(name, [])
        if not isinstance(found, list):
            raise UsageError(f"{name} must be a list of messages, got {type(found).__name__}")
        return found

    def _expanded(self, text: str) -> str:
        try:
            return text.format_map(self._variables)
        except KeyError as e:
            raise UsageError(
                f"there is no variable {e}; write {{{{ and }}}} for braces of the text"
            ) from None
        except (AttributeError, IndexError, ValueError) as e:
            raise UsageError(f"--expand: {e}; write {{{{ and }}}} for braces of the text") from None


def _parsed(magic: Any, line: str) -> argparse.Namespace:
    """Return the options of a line. Quotes group words; backslashes are those of Windows' paths."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="")
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    try:
        found: argparse.Namespace = magic.parser.parse_args([*lexer])
    except ValueError as e:
        raise UsageError(f"{e}, in: {line}") from None
    return found


def _answer_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of an answer that are given."""
    found = {**options.sampling_options(args), **options.thinking_options(args)}
    for name in ("system", "max_tokens", "stream", "stop"):
        if (value := getattr(args, name)) is not None:
            found[name] = value
    if args.logprobs is not None:
        found |= {"logprobs": True, "top_logprobs": args.logprobs}
    return found


def _with_model(args: argparse.Namespace, model: str | None) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), "model": model})


def _value(schema: _Schema, answer: Collector) -> object:
    """Return the value of an answer that matches a schema."""
    if answer.finish_reason != "stop":
        raise UsageError("the answer was cut off before the JSON ended; raise -n or the context")
    return schema.parse(answer.text)


@contextmanager
def _short_errors() -> Iterator[None]:
    """Show an error of this package, or the stop button, as one line without the frames."""
    try:
        yield
    except KeyboardInterrupt as e:
        stopped: Any = e
        stopped._render_traceback_ = lambda: ["KeyboardInterrupt: stopped"]  # IPython asks for it
        raise
    except LlamaError as e:
        raise UsageError(str(e)) from e
