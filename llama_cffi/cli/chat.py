"""`llama-cffi chat`: talk with a model in the terminal; one answer where stdin is none."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ContextOverflowError, LlamaError, ValidationError
from . import inputs, interrupt, media, options, output
from .line_editor import LineEditor

if TYPE_CHECKING:
    from ..api.llama import Llama
    from .chat_session import ChatSession, Message

__all__ = ["add_parser"]

_EXAMPLES = """
llama-cffi chat -m model.gguf
llama-cffi chat -m model.gguf --session talk.json -s "Be brief."
echo "What is 12 + 30?" | llama-cffi chat -m model.gguf
llama-cffi chat -m model.gguf --mmproj mmproj.gguf --image cat.png -p "What is this?"
"""
_HELP = """\
/help              this list
/exit, /bye        leave, as Ctrl-D does
/clear             forget the conversation
/regen             answer the last message again
/read FILE         send the text of a file with the next message
/image FILE        send a picture with the next message
/audio FILE        send a sound with the next message
/system [TEXT]     set the system prompt; without a text remove it
/set [NAME VALUE]  set an option, such as temperature 0.7; without one show them
/save FILE         save the conversation
/load FILE         continue a saved one
\"\"\"                begin and end a message of several lines; a trailing \\ continues a line
Ctrl-C             stop the answer, which is kept; at the prompt clear the line, twice leave
"""
_DIM, _PLAIN = "\033[2m", "\033[0m"


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "chat",
        help="talk with a model",
        description="Talk with a model. /help lists the commands. If stdin is not a terminal, it "
        "is one message, and the answer is all that is written to stdout.",
        epilog=options.epilog(_EXAMPLES, *options.MODELS),
        formatter_class=options.HelpFormatter,
    )
    options.add_model(parser)
    inputs.add_text(parser, "the first message")
    media.add_media(parser, "the first message")
    parser.add_argument(
        "-st", "--single-turn", action="store_true", help="leave after the first answer"
    )
    parser.add_argument(
        "-s", "-sys", "--system", "--system-prompt", dest="system", default="", metavar="TEXT",
        help="the system prompt",
    )  # fmt: skip
    parser.add_argument(
        "-sysf", "--system-prompt-file", dest="system_file", metavar="FILE",
        help="read the system prompt from a file",
    )  # fmt: skip
    parser.add_argument(
        "-n", "--max-tokens", "--n-predict", "--predict", type=options.at_least(-1), default=-1,
        metavar="N", help="most tokens of an answer; -1 (default): until the model ends it",
    )  # fmt: skip
    showing = parser.add_argument_group("conversation")
    showing.add_argument(
        "--session", metavar="FILE", help="continue the conversation in a file, and keep it there"
    )
    showing.add_argument(
        "--history", metavar="FILE", help="where the lines that were typed are kept"
    )
    showing.add_argument("--no-history", action="store_true", help="keep no lines")
    showing.add_argument(
        "--show-timings", action="store_true", help="tell the speed after each answer, on stderr"
    )
    thinking = options.add_thinking(parser)
    thinking.add_argument(
        "--reasoning-budget", type=options.at_least(-1), metavar="N",
        help="most tokens of reasoning; 0: none, -1: no limit",
    )  # fmt: skip
    thinking.add_argument("--hide-thinking", action="store_true", help="do not show the reasoning")
    options.add_sampling(parser)
    options.add_running(parser)
    parser.set_defaults(func=_run, usage_error=parser.error)


def _run(args: argparse.Namespace) -> int:
    if args.max_tokens == 0:
        args.usage_error("--max-tokens must be at least 1, or -1, got 0")
    if args.system and args.system_file is not None:
        args.usage_error("give the system prompt once: --system or --system-prompt-file")
    system = inputs.check_utf8(args.system, "system prompt")
    if args.system_file is not None:
        system = inputs.without_newline(inputs.read_file(args.system_file))
    talks = not inputs.is_piped()
    first = _first_message(args, talks)
    attached = media.attached(args)

    from ..api.llama import Llama
    from ..generation.sampling_params import SamplingParams
    from .chat_session import ChatSession

    settings = options.sampling_options(args)
    SamplingParams(**settings)  # before a model is loaded
    settings |= _thinking(args)
    if args.max_tokens != -1:
        settings["max_tokens"] = args.max_tokens
    how = {"context_policy": "drop_oldest_turns", **options.running_options(args)}
    with Llama(options.model_source(args, "chat"), **how) as llm:
        interrupt.check()
        session = ChatSession(llm, system, settings)
        chat = _Chat(session, llm, args)
        if args.session is not None:
            path = Path(args.session).expanduser()
            if path.exists():
                session.load(path)
                chat.check_messages()
            session.system = system or session.system
            session.save(path)  # tells now if it cannot be written
        for one in attached:
            chat.attach(one, tells=talks)
        if first is not None:
            chat.say(first, talks and not args.single_turn)
        if talks and not args.single_turn:
            return chat.loop()
    return 0


def _first_message(args: argparse.Namespace, talks: bool) -> str | None:
    """Return the message of the arguments or of stdin; None: it will be typed."""
    given = args.text is not None or args.prompt is not None or args.file is not None
    if not given and talks:
        return None
    if given and not talks and args.file is None and "-" not in (args.text, args.prompt):
        text, more = inputs.text_of(args, "message"), inputs.read_beside()
        text = f"{text}\n\n{more}" if more.strip() else text
    else:
        text = inputs.without_newline(inputs.text_of(args, "message"))
    if not text.strip():
        raise ValidationError("the message is empty: give text, or pipe it in")
    return text


def _thinking(args: argparse.Namespace) -> dict[str, Any]:
    found = options.thinking_options(args)
    if args.reasoning_budget not in (None, -1):
        found["thinking_budget"] = args.reasoning_budget
    return found


class _Chat:
    """Reads lines, answers them, and obeys commands."""

    def __init__(self, session: ChatSession, llm: Llama, args: argparse.Namespace) -> None:
        self._session, self._llm, self._args = session, llm, args
        self._texts: list[str] = []
        self._media: list[media.Attachment] = []
        self._clean = output.printable if output.is_terminal(sys.stdout) else str

    def loop(self) -> int:
        """Talk until the end; return the exit code."""
        history = None if self._args.no_history else self._args.history
        interrupted = False
        print("/help lists the commands", file=sys.stderr)
        with LineEditor(history, keeps=not self._args.no_history) as editor:
            while True:
                try:
                    text = editor.read()
                except KeyboardInterrupt:
                    interrupt.forget()
                    if interrupted:
                        return 130
                    interrupted = True
                    print("\n(Ctrl-C again, Ctrl-D or /exit leaves)", file=sys.stderr)
                    continue
                interrupted = False
                if text is None or text.strip() in ("/exit", "/bye", "/quit"):
                    return 0
                if text.startswith("/") and "\n" not in text:
                    self._command(text)
                elif text.strip():
                    self.say(text, True)

    def attach(self, attachment: media.Attachment, *, tells: bool = True) -> None:
        """Send a picture or sound with the next message.

        Raises:
            LlamaError: The model does not take it.
        """
        self._check(attachment.kind)
        self._media.append(attachment)
        if tells:
            print(f"{self._clean(str(attachment))} goes with the next message", file=sys.stderr)

    def check_messages(self) -> None:
        """Refuse the pictures and sounds of a conversation that the model does not take.

        Raises:
            LlamaError: It does not take them.
        """
        for kind in {one.kind for message in self._session.messages for one in message.media}:
            self._check(kind)

    def _check(self, kind: str) -> None:
        engine: Any = self._llm.engine
        media.check_media(engine.media, self._args.mmproj, kind)

    def say(self, text: str, goes_on: bool) -> None:
        """Send *text* with what is attached, and answer on stdout.

        Ctrl-C stops the answer, and the chat where *goes_on*.
        """
        message = self._session.message("\n\n".join([*self._texts, text]), [*self._media])
        self._texts.clear()
        self._media.clear()
        self._say(message, goes_on)

    def _say(self, message: Message, goes_on: bool) -> None:
        try:
            self._answer(message)
        except KeyboardInterrupt:
            if not goes_on:
                raise
            interrupt.forget()
            print("\n(stopped)", file=sys.stderr)
        except LlamaError as e:
            if not goes_on:
                raise
            advice = (
                "; /clear forgets the conversation" if isinstance(e, ContextOverflowError) else ""
            )
            print(f"error: {e}{advice}", file=sys.stderr)
        finally:
            if self._args.session is not None:
                self._session.save(Path(self._args.session).expanduser())
        if self._args.show_timings:
            print(f"[{self._timings()}]", file=sys.stderr)

    def _answer(self, message: Message) -> None:
        shows = output.is_terminal(sys.stdout) and not self._args.hide_thinking
        dims = output.has_colours(sys.stdout)
        kind, last = "content", ""
        pieces = self._session.answer(message)
        with contextlib.closing(pieces):  # type: ignore[type-var]
            try:
                for now, text in pieces:
                    if now != "content" and not shows:
                        continue
                    if now != kind:
                        mark = "" if not dims else _DIM if now != "content" else _PLAIN
                        output.say(mark if now != "content" else f"{mark}\n\n")
                        kind = now
                        text = text if now != "content" else text.lstrip("\n")
                    output.say(self._clean(text))
                    interrupt.check()
                    last = text or last
            finally:
                if kind != "content" and dims:
                    output.say(_PLAIN)
        if not last.endswith("\n"):
            output.say("\n")

    def _timings(self) -> str:
        from ..api.timings import timings

        stats: Any = self._llm.engine.stats
        found = timings(stats, stats.n_generated)
        return (
            f"prompt {found['prompt_n'] + found['cache_n']:.0f} tok (cached {found['cache_n']:.0f})"
            f", {found['prompt_per_second']:.1f} tok/s; answer {found['predicted_n']:.0f} tok, "
            f"{found['predicted_per_second']:.1f} tok/s; first token "
            f"{stats.time_to_first_token_s * 1e3:.0f} ms"
        )

    def _command(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        known = {
            "/help": self._help, "/?": self._help, "/clear": self._clear,
            "/regen": self._regenerate, "/read": self._read, "/image": self._image,
            "/audio": self._audio, "/system": self._system, "/set": self._set,
            "/save": self._save, "/load": self._load,
        }  # fmt: skip
        try:
            if name not in known:
                raise ValidationError(f"there is no command {name}; /help lists them")
            known[name](rest)
        except LlamaError as e:
            print(f"error: {e}", file=sys.stderr)

    def _help(self, _: str) -> None:
        print(_HELP, end="", file=sys.stderr)

    def _clear(self, _: str) -> None:
        self._session.messages.clear()
        self._texts.clear()
        self._media.clear()

    def _regenerate(self, _: str) -> None:
        message = self._session.last_prompt()
        if message is None:
            raise ValidationError("there is no message to answer again")
        self._say(message, True)

    def _read(self, name: str) -> None:
        self._texts.append(inputs.without_newline(inputs.read_file(_named(name, "/read"))))
        print(f"{name} goes with the next message", file=sys.stderr)

    def _image(self, name: str) -> None:
        self.attach(media.Attachment.load("image", _named(name, "/image", "cat.png")))

    def _audio(self, name: str) -> None:
        self.attach(media.Attachment.load("audio", _named(name, "/audio", "talk.wav")))

    def _system(self, text: str) -> None:
        self._session.system = text

    def _set(self, text: str) -> None:
        if not text:
            shown = json.dumps(self._session.settings, ensure_ascii=False)
            print(f"settings: {shown}", file=sys.stderr)
            return
        name, _, value = text.partition(" ")
        if not value.strip():
            raise ValidationError("/set needs a name and a value, such as /set temperature 0.7")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value.strip()
        self._session.set(name.removeprefix("--").replace("-", "_"), parsed)

    def _save(self, name: str) -> None:
        self._session.save(Path(_named(name, "/save")).expanduser())

    def _load(self, name: str) -> None:
        self._session.load(Path(_named(name, "/load")).expanduser())
        self.check_messages()
        messages = self._session.messages
        if not messages:
            print("an empty conversation", file=sys.stderr)
            return
        shown = " ".join(str(one) for message in messages for one in message.media)
        print(
            f"{len(messages)} messages{self._clean(f' with {shown}') if shown else ''}; the last "
            f"one is from the {messages[-1].role}",
            file=sys.stderr,
        )


def _named(name: str, command: str, example: str = "notes.txt") -> str:
    if not name:
        raise ValidationError(f"{command} needs a file, such as {command} {example}")
    return name
