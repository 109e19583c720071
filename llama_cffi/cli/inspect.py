"""`llama-cffi inspect`: metadata, tensors, tokenizer and chat template of a GGUF file."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ValidationError
from . import options, output
from .projector import is_projector, projector_facts

if TYPE_CHECKING:
    from ..gguf.header_check import GgufArray, GgufSummary, GgufTensor

__all__ = ["Header", "add_parser", "as_dict", "facts", "opened"]

_EXAMPLES = """
llama-cffi inspect model.gguf
llama-cffi inspect hf:owner/repo:Q4_K_M --tensors
llama-cffi inspect model.gguf --key tokenizer.chat_template
"""
_TEMPLATE = "tokenizer.chat_template"
_TOKENS = "tokenizer.ggml.tokens"
_SPECIAL = ("bos", "eos", "eot", "unknown", "separator", "padding", "mask")
_TYPE_NAMES = (
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "array", "u64", "i64", "f64",
)  # fmt: skip
_MAX_SHOWN = 60


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "inspect",
        help="show what is in a GGUF file",
        description="Show the metadata, tensors, tokenizer and chat template of a GGUF file, "
        "without loading it. Of a file on the hub only the header is read, by ranges.",
        epilog=options.epilog(_EXAMPLES, "OFFLINE"),
        formatter_class=options.HelpFormatter,
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a GGUF file, or hf:OWNER/REPO[:FILE or QUANT]"
    )
    options.add_model(parser, flag_dest="given")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--metadata", action="store_true", help="print all keys and values")
    shown.add_argument("--tensors", action="store_true", help="print all tensors")
    shown.add_argument("--template", action="store_true", help="print the chat template")
    shown.add_argument(
        "--key", metavar="NAME", help="print one value, an array as JSON, and nothing else"
    )
    options.add_json(parser, "all of it")
    parser.set_defaults(func=_run, usage_error=parser.error)


class Header(NamedTuple):
    """The headers of a model's files.

    Attributes:
        name: The first file.
        summaries: The header of each file; the metadata is the first one's.
        items: Reads an array of the first.
    """

    name: str
    summaries: list[GgufSummary]
    items: Callable[[GgufArray], list[Any]]

    @property
    def values(self) -> Mapping[str, Any]:
        """The scalar and string metadata."""
        return self.summaries[0].values

    @property
    def arrays(self) -> Mapping[str, GgufArray]:
        """The arrays of the metadata."""
        return self.summaries[0].arrays

    @property
    def tensors(self) -> list[GgufTensor]:
        """The tensors of all files."""
        return [tensor for summary in self.summaries for tensor in summary.tensors]

    def value(self, key: str) -> Any:
        """Return a value; None: there is none."""
        if key in self.arrays:
            return self.items(self.arrays[key])
        return self.values.get(key)

    def hparam(self, name: str) -> Any:
        """Return a value of the architecture."""
        return self.value(f"{self.summaries[0].architecture}.{name}")


def _run(args: argparse.Namespace) -> int:
    if args.model is not None and args.given is not None:
        args.usage_error("give the model once: as an argument or with -m")
    with opened(args.model if args.given is None else args.given) as header:
        if args.key is not None:
            _print_value(header, args.key, args.json)
        elif args.json:
            output.print_json(as_dict(header))
        elif args.template:
            _print_value(header, _TEMPLATE, False)
        elif args.tensors:
            _print_tensors(header)
        elif args.metadata:
            _print_metadata(header)
        else:
            output.say("".join(f"{name:15} {text}\n" for name, text in facts(header)))
    return 0


@contextmanager
def opened(model: str | None) -> Iterator[Header]:
    """Provide the headers of a model; None: the demo model's."""
    from ..gguf.reader import check_gguf, check_parts, decode_array, read_gguf
    from ..hub import HubSpec, remote_files, resolve_model

    if model is not None and model.startswith("hf:"):
        from ..gguf.remote import read_remote_header

        files = remote_files(HubSpec.parse(model))
        headers = [read_remote_header(file.name, file.size, file.read) for file in files]
        with closing(headers[0].data) as data:
            yield Header(
                f"{model} ({files[0].name})",
                [header.summary for header in headers],
                lambda array: decode_array(Path(files[0].name), data, array, len(data)),
            )
        return
    path = output.demo_path("inspect") if model is None else resolve_model(model)
    first = read_gguf(path)
    summary = check_gguf(path)
    parts = [check_gguf(part) for part in check_parts(path, summary)[1:]]
    keys = {id(array): key for key, array in summary.arrays.items()}
    yield Header(
        str(path),
        [summary, *parts],
        lambda array: list(first.metadata[keys[id(array)]]),  # type: ignore[arg-type]
    )


def facts(header: Header) -> Iterator[tuple[str, str]]:
    """Yield the lines of the overview."""
    summary, tensors = header.summaries[0], header.tensors
    size = sum(s.size_bytes for s in header.summaries)
    parts = f" in {len(header.summaries)} files" if len(header.summaries) > 1 else ""
    yield "file", f"{header.name}, {size / 1e6:,.1f} MB{parts}, GGUF version {summary.version}"
    if name := header.values.get("general.name"):
        yield "name", _printable(name)
    yield "architecture", _printable(summary.architecture) or "none"
    n_params = sum(math.prod(t.shape) for t in tensors)
    if n_params:
        n_bytes = sum(t.size_bytes or 0 for t in tensors)
        yield "parameters", f"{n_params:,}, {8 * n_bytes / n_params:.2f} bits per weight"
    counts = Counter(t.type_name for t in tensors)
    types = ", ".join(f"{n} {name}" for name, n in counts.most_common())
    yield "tensors", f"{len(tensors)}: {types}" if tensors else "none"
    if is_projector(header.values):
        yield from ((label, _printable(text)) for label, text in projector_facts(header.values))
        return
    for label, name in (
        ("context", "context_length"),
        ("embedding", "embedding_length"),
        ("layers", "block_count"),
        ("heads", "attention.head_count"),
        ("KV heads", "attention.head_count_kv"),
        ("experts", "expert_count"),
    ):
        if (value := header.hparam(name)) is not None:
            yield label, f"{value:,}" if isinstance(value, int) else str(value)
    tokenizer = _tokenizer(header)
    if tokenizer["model"] is not None:
        pre = f" ({tokenizer['pre']})" if tokenizer["pre"] else ""
        yield "tokenizer", f"{tokenizer['model']}{pre}, {tokenizer['n_tokens']:,} tokens"
        special = (
            f"{name} {token['id']} {token['text']!r}"
            for name, token in tokenizer["special"].items()
        )
        if tokens := ", ".join(special):
            yield "special tokens", tokens
        yield (
            "adds",
            ", ".join(n.upper() for n in ("bos", "eos") if tokenizer[f"add_{n}"]) or "none",
        )
    template = header.value(_TEMPLATE)
    yield "chat template", f"{len(template):,} characters; --template" if template else "none"
    if license_ := header.values.get("general.license"):
        yield "license", _printable(license_)


def _tokenizer(header: Header) -> dict[str, Any]:
    def value(name: str) -> Any:
        return header.values.get(f"tokenizer.ggml.{name}")

    ids = {name: value(f"{name}_token_id") for name in _SPECIAL}
    tokens = header.value(_TOKENS) or []
    return {
        "model": value("model"),
        "pre": value("pre"),
        "n_tokens": len(tokens),
        "special": {
            name: {"id": i, "text": tokens[i] if 0 <= i < len(tokens) else None}
            for name, i in ids.items()
            if isinstance(i, int)
        },
        "add_bos": bool(value("add_bos_token")),
        "add_eos": bool(value("add_eos_token")),
    }


def as_dict(header: Header) -> dict[str, Any]:
    """Return everything but the items of long arrays."""
    summary = header.summaries[0]
    arrays = {
        key: list(array.items)
        if array.items
        else {"array": _TYPE_NAMES[array.kind], "count": array.count}
        for key, array in header.arrays.items()
    }
    return {
        "file": header.name,
        "size_bytes": sum(s.size_bytes for s in header.summaries),
        "n_files": len(header.summaries),
        "version": summary.version,
        "architecture": summary.architecture,
        "n_params": sum(math.prod(t.shape) for t in header.tensors),
        "metadata": {**header.values, **arrays},
        "tokenizer": _tokenizer(header),
        "chat_template": header.value(_TEMPLATE),
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "type": t.type_name,
                "offset": t.offset,
                "size_bytes": t.size_bytes,
            }
            for t in header.tensors
        ],
    }


def _print_value(header: Header, key: str, as_json: bool) -> None:
    value = header.value(key)
    if value is None:
        names = [*header.values, *header.arrays]
        near = difflib.get_close_matches(key, names, 1) or [n for n in names if key in n][:1]
        advice = f"did you mean {near[0]}?" if near else "--metadata lists the keys"
        raise ValidationError(f"{header.name} has no {key}; {advice}")
    if as_json:
        output.print_json({key: value})
    elif isinstance(value, str):
        output.say((_printable(value, "\n\t") if output.is_terminal(sys.stdout) else value) + "\n")
    else:
        output.say(json.dumps(value, ensure_ascii=False) + "\n")


def _print_metadata(header: Header) -> None:
    summary = header.summaries[0]
    rows = [
        (key, _TYPE_NAMES[summary.kinds[key]] if key in summary.kinds else "", _short(value))
        for key, value in header.values.items()
    ]
    rows += [
        (key, f"{_TYPE_NAMES[a.kind]}[{a.count}]", _short(header.items(a)[:8]))
        for key, a in header.arrays.items()
    ]
    output.print_table(("KEY", "TYPE", "VALUE"), rows)


def _print_tensors(header: Header) -> None:
    rows = [
        (_printable(t.name), "x".join(map(str, t.shape)), t.type_name, f"{t.size_bytes or 0:,}")
        for t in header.tensors
    ]
    output.print_table(("TENSOR", "SHAPE", "TYPE", "BYTES"), rows)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = _printable(text.replace("\n", "\\n"))
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _printable(text: Any, kept: str = "") -> str:
    """Return text of a file without control characters."""
    shown = output.printable(str(text))
    return shown if kept else shown.replace("\n", " ")
