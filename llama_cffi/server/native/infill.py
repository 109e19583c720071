"""POST /infill: the text between a prefix and a suffix, with further files as context."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

from starlette.routing import BaseRoute

from ...api.completions import prompt_tokens
from ...binding import Vocab
from ..body import LIST, STRING, Kind, Object, take
from ..call import Answer, Call, Endpoint
from ..errors import invalid, not_supported
from ..models import ServedModel
from ..paths import bare_post
from .completion import FIELDS, answer, check

__all__ = ["routes"]

_FIELDS: Mapping[str, Kind] = {
    **FIELDS,
    "prompt": STRING,
    "input_prefix": STRING,
    "input_suffix": STRING,
    "input_extra": LIST,
}
_REPOSITORY, _FILE = "myproject\n", "filename\n"  # llama-server's; models are used to some name


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    return [bare_post("/infill", Endpoint(_infill))]


async def _infill(call: Call) -> Answer:
    model = call.model
    given = take(call.body, _FIELDS, "input_prefix", "input_suffix")
    vocab = model.llm.model.vocab
    if None in (vocab.fim_pre, vocab.fim_suf, vocab.fim_mid):
        raise not_supported(
            f"{model.name} has no fill-in-the-middle tokens; use a model that was trained for it"
        )
    files = _files(given.pop("input_extra", []))
    core = {name: given.pop(name, "") for name in ("prompt", "input_prefix", "input_suffix")}
    wanted = await asyncio.to_thread(check, model, given)
    tokens, n_dropped = await asyncio.to_thread(_tokens, model, core, files, wanted.n_predict)
    return await answer(call, dataclasses.replace(wanted, n_dropped=n_dropped), [tokens])


def _files(given: list[Any]) -> list[tuple[str, str]]:
    """Return the names and texts of further files.

    Raises:
        ApiError: An item is something else.
    """
    files = []
    for i, item in enumerate(given):
        text = item.get("text") if isinstance(item, dict) else None
        name = item.get("filename", "tmp") if isinstance(item, dict) else None
        if not isinstance(text, str) or not isinstance(name, str):
            raise invalid(
                "input_extra",
                f'input_extra[{i}] must be {{"filename": a string, "text": a string}}',
            )
        files.append((name, text))
    return files


def _tokens(
    model: ServedModel, core: Object, files: list[tuple[str, str]], n_predict: int
) -> tuple[list[int], int]:
    """Return the tokens of the prompt, and how many of the further files' did not fit.

    The oldest of those are dropped; prefix and suffix stay whole. Source: format_prompt_infill of
    llama-server, https://arxiv.org/pdf/2409.12186.
    """
    vocab, n_ctx = model.llm.model.vocab, int(model.llm.n_ctx)
    before = [*vocab.tokenize(core["input_prefix"], False), *vocab.tokenize(core["prompt"], False)]
    tokens = prompt_tokens(model.llm.model, before, core["input_suffix"])
    extra = _extra(vocab, files)
    n_answer = n_ctx // 4 if n_predict == -1 else min(n_predict, n_ctx // 2)
    n_kept = max(0, min(len(extra), n_ctx - len(tokens) - n_answer))
    at = int(bool(tokens) and tokens[0] == vocab.bos and vocab.add_bos)
    return [*tokens[:at], *extra[len(extra) - n_kept :], *tokens[at:]], len(extra) - n_kept


def _extra(vocab: Vocab, files: list[tuple[str, str]]) -> list[int]:
    """Return the tokens of further files, and of the head of the one that is edited."""
    rep, sep = vocab.fim_rep, vocab.fim_sep
    found = [] if rep is None else [rep, *vocab.tokenize(_REPOSITORY, False)]
    for name, text in files:
        head = "\n\n--- snippet ---\n\n" if sep is None else f"{name}\n"
        found += [*([] if sep is None else [sep]), *vocab.tokenize(head, False)]
        found += vocab.tokenize(text, False)
    return found if sep is None else [*found, sep, *vocab.tokenize(_FILE, False)]
