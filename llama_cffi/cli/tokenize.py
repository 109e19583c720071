"""`llama-cffi tokenize`: text to token ids, and back."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

from ..errors import ValidationError
from . import inputs, options, output

if TYPE_CHECKING:
    from ..binding import Vocab

__all__ = ["add_parser"]

_EXAMPLES = """
llama-cffi tokenize -m model.gguf "Hello, world"
llama-cffi tokenize -m model.gguf -f prompt.txt --count
llama-cffi tokenize -m model.gguf "Hello" | llama-cffi tokenize -m model.gguf --detokenize
"""
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "tokenize",
        help="turn text into token ids, and back",
        description="Print the token ids of a text. The text is taken verbatim, from an argument, "
        "a file or stdin; only the vocabulary of the model is loaded.",
        epilog=options.epilog(_EXAMPLES, *options.MODELS[:-1]),
        formatter_class=options.HelpFormatter,
    )
    options.add_model(parser)
    inputs.add_text(parser, "the text")
    parser.add_argument("--stdin", action="store_true", help="read the text from stdin")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--ids", action="store_true", help="print a list of ids (the default)")
    shown.add_argument(
        "--pieces", action="store_true", help="print a line for each token: id, text"
    )
    shown.add_argument("--count", action="store_true", help="print only the number of tokens")
    shown.add_argument(
        "-d", "--detokenize", action="store_true",
        help="the input is a list of ids, separated by commas or spaces: print their text",
    )  # fmt: skip
    parser.add_argument(
        "--show-count", action="store_true", help="print the number of tokens at the end, too"
    )
    parser.add_argument(
        "--no-bos", action="store_true", help="do not add the tokens that the model wants around it"
    )
    parser.add_argument(
        "--no-parse-special", action="store_true",
        help="names of special tokens, such as <|im_end|>, are plain text",
    )  # fmt: skip
    parser.add_argument(
        "-e", "--escape", action="store_true", help=r"\n, \t, \\ in the text are escape sequences"
    )
    options.add_json(parser, "tokens, pieces and their number")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    if args.stdin:
        if args.text is not None or args.prompt is not None or args.file is not None:
            args.usage_error("--stdin reads the text from stdin; leave out the other text")
        args.file = "-"
    text = inputs.text_of(args, "text")
    ids = _parsed(text) if args.detokenize else None

    from ..binding import Model

    with Model(options.model_source(args, "tokenize"), vocab_only=True) as model:
        vocab = model.vocab
        if ids is not None:
            _detokenize(vocab, ids, args)
            return 0
        text = re.sub(r"\\(.)", _unescaped, text) if args.escape else text
        tokens = vocab.tokenize(text, not args.no_bos, not args.no_parse_special)
        _print(vocab, tokens, args)
    return 0


def _print(vocab: Vocab, tokens: list[int], args: argparse.Namespace) -> None:
    if args.json:
        pieces = [output.piece_text(vocab.token_to_piece(token, True)) for token in tokens]
        whole = {"tokens": tokens, "pieces": pieces, "count": len(tokens)}
        output.print_json({"count": len(tokens)} if args.count else whole)
        return
    if args.count:
        output.say(f"{len(tokens)}\n")
        return
    if args.pieces:
        for token in tokens:
            piece = vocab.token_to_piece(token, True).decode("utf-8", "backslashreplace")
            output.say(f"{token:6d} -> {piece!r}\n")
    else:
        output.say(f"[{', '.join(map(str, tokens))}]\n")
    if args.show_count:
        output.say(f"Total number of tokens: {len(tokens)}\n")


def _detokenize(vocab: Vocab, ids: list[int], args: argparse.Namespace) -> None:
    """Write the text, byte for byte: tokens may be parts of characters."""
    if not args.no_bos:  # what `tokenize` added
        ids = ids[1:] if vocab.add_bos and ids[:1] == [vocab.bos] else ids
        ids = ids[:-1] if vocab.add_eos and ids[-1:] == [vocab.eos] else ids
    if args.json:
        output.print_json({"text": vocab.detokenize(ids, True), "count": len(ids)})
        return
    data = b"".join(vocab.token_to_piece(token, True) for token in ids)
    if data.startswith(b" ") and vocab.adds_space:
        data = data[1:]
    if sys.stdout.isatty() or not hasattr(sys.stdout, "buffer"):
        output.say(output.printable(data.decode("utf-8", "replace")) + "\n")
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _parsed(text: str) -> list[int]:
    found = []
    for part in text.strip().removeprefix("[").removesuffix("]").replace(",", " ").split():
        if not (part.isascii() and part.isdigit()):
            raise ValidationError(
                f"{part[:40]!r} is not a token id; --detokenize takes ids such as 1, 22172, 29892"
            )
        found.append(int(part))
    if not found:
        raise ValidationError("there is no token id in the input; give ids such as 1, 22172")
    return found


def _unescaped(match: re.Match[str]) -> str:
    return _ESCAPES.get(match[1], match[0])
