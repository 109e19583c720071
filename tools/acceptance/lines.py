"""The list of checks, and helpers for them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from llama_cffi import Context, Model, demo

MODEL = demo.model_path()
QUESTION = "What is 17 + 25?"
LINES: dict[str, list[tuple[str, Callable[[], None]]]] = {}


def line(library: str, feature: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register the check of one feature of a library."""

    def register(check: Callable[[], None]) -> Callable[[], None]:
        LINES.setdefault(library, []).append((feature, check))
        return check

    return register


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables in a block."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def raw_greedy(model: Model, tokens: list[int], n_tokens: int) -> list[int]:
    """Return the greedy continuation, by llama_decode and llama_sampler_sample only."""
    library = model.library
    lib = library.lib
    context = Context(model, n_ctx=256, n_threads=1)
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
    batch = lib.llama_batch_init(256, 0, 1)
    found: list[int] = []
    new, pos = tokens, 0
    while len(found) < n_tokens:
        for i, token in enumerate(new):
            batch.token[i], batch.pos[i] = token, pos + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i == len(new) - 1
        batch.n_tokens = len(new)
        assert lib.llama_decode(context.ptr, batch) == 0
        pos += len(new)
        token = lib.llama_sampler_sample(chain, context.ptr, -1)
        if model.vocab.is_eog(token):
            break
        found.append(token)
        new = [token]
    lib.llama_batch_free(batch)
    lib.llama_sampler_free(chain)
    context.close()
    return found


def refused(error: type[Exception], call: Callable[[], object]) -> str:
    """Return the message of the error that *call* must raise."""
    try:
        call()
    except error as e:
        return str(e)
    raise AssertionError(f"{error.__name__} was not raised")


def says(text: str) -> str:
    """Return a grammar that allows only *text*."""
    return 'root ::= "' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
