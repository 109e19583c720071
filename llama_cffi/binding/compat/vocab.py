"""The vocabulary and the chat template."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..loading.library import Library
from .names import c_function

__all__ = [
    "add_sep",
    "chat_apply_template",
    "chat_template",
    "has_tokens",
    "special_token",
    "token_attributes",
    "vocab_of",
    "vocab_type",
]


def vocab_of(library: Library, model: Any) -> Any:
    """Return the handle for vocabulary calls: the model itself before b4529."""
    if library.has("llama_model_get_vocab"):
        return library.lib.llama_model_get_vocab(model)
    return model


def has_tokens(library: Library, vocab: Any) -> bool:
    """Whether the model has a vocabulary; C aborts if one without is used. C: llama_vocab_type."""
    return bool(library.lib.llama_vocab_type(vocab) != 0)  # LLAMA_VOCAB_TYPE_NONE


def vocab_type(library: Library, vocab: Any) -> str:
    """Return the type of the vocabulary in lower case. C: llama_vocab_type."""
    number = library.lib.llama_vocab_type(vocab)
    names: Mapping[int, str] = library.ffi.typeof("enum llama_vocab_type").elements
    return names.get(number, str(number)).removeprefix("LLAMA_VOCAB_TYPE_").lower()


def token_attributes(library: Library, flags: int) -> frozenset[str]:
    """Return the names of the attribute bits that are set. C: enum llama_token_attr."""
    names: Mapping[int, str] = library.ffi.typeof("enum llama_token_attr").elements
    prefix = "LLAMA_TOKEN_ATTR_"
    return frozenset(n.removeprefix(prefix).lower() for bit, n in names.items() if flags & bit)


def special_token(library: Library, vocab: Any, name: str) -> int | None:
    """Return the id of a special token, -1 if there is none; None if the build cannot tell.

    `mask` (b4753) and `fim_pad`, `fim_rep`, `fim_sep` (b3995) were added after the others.
    """
    for prefix in ("llama_vocab_", "llama_token_"):
        with contextlib.suppress(AttributeError):
            return int(c_function(library, prefix + name)(vocab))
    return None


def add_sep(library: Library, vocab: Any) -> bool:
    """Whether C adds SEP at the end. C: llama_vocab_get_add_sep; older builds never do."""
    name = "llama_vocab_get_add_sep"
    return library.has(name) and bool(getattr(library.lib, name)(vocab))


def chat_template(library: Library, model: Any) -> str | None:
    """Return the model's chat template. C: llama_model_chat_template; before b4529 metadata."""
    ffi, lib = library.ffi, library.lib
    if library.has("llama_model_chat_template"):
        arguments = len(ffi.typeof(lib.llama_model_chat_template).args)
        # The second argument, a name, was added after the function itself.
        text = lib.llama_model_chat_template(model, *([ffi.NULL] * (arguments - 1)))
        return ffi.string(text).decode("utf-8", "replace") if text else None
    key = b"tokenizer.chat_template"
    length = lib.llama_model_meta_val_str(model, key, ffi.NULL, 0)
    if length < 0:
        return None
    buffer = ffi.new("char[]", length + 1)
    lib.llama_model_meta_val_str(model, key, buffer, length + 1)
    return str(ffi.string(buffer).decode("utf-8", "replace"))


def chat_apply_template(
    library: Library, model: Any, template: str, messages: Sequence[tuple[str, str]], add_ass: bool
) -> str | None:
    """Render with llama.cpp's built-in templates; None if it does not know this one.

    C: llama_chat_apply_template, which took the model as first argument until b4529.
    """
    ffi, lib = library.ffi, library.lib
    keep = [(ffi.new("char[]", r.encode()), ffi.new("char[]", c.encode())) for r, c in messages]
    chat = ffi.new("llama_chat_message[]", [{"role": r, "content": c} for r, c in keep])
    takes_model = len(ffi.typeof(lib.llama_chat_apply_template).args) == 7
    first = (model, template.encode()) if takes_model else (template.encode(),)
    length = lib.llama_chat_apply_template(*first, chat, len(keep), add_ass, ffi.NULL, 0)
    if length < 0:
        return None
    buffer = ffi.new("char[]", length + 1)
    lib.llama_chat_apply_template(*first, chat, len(keep), add_ass, buffer, length + 1)
    return bytes(ffi.buffer(buffer, length)).decode("utf-8")
