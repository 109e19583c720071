"""The process that tries a model, since what is wrong with it may crash C."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

from ..errors import LlamaError
from .context.batch import Batch
from .context.context import Context
from .loading.library import Library, get_library
from .model.model import Model
from .model.trial import FINISHED, STARTED
from .multimodal import MediaChunk, Projector

__all__ = ["main"]

_N_CTX = 32
_PICTURES, _N_SAMPLES = ((32, 32), (17, 300)), 1600
_TEXT = "H\u00e9llo\0 <|im_end|>\n\n123 \U0001f600"


def main() -> None:
    """Load the model of the job in argv and use it in every way, reporting start and end."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what C prints must not get into the report
    job = json.loads(sys.argv[1])
    library = get_library(job["library"])
    print(STARTED, file=out, flush=True)
    with contextlib.suppress(LlamaError):  # the parent gets it, too
        _use(job, library)
    print(FINISHED, file=out, flush=True)


def _use(job: dict[str, Any], library: Library) -> None:
    if "projector" in job:
        _project(job, library)
        return
    model = Model(
        job["paths"] if job["listed"] else job["paths"][0],
        vocab_only=job["vocab_only"],
        n_gpu_layers=0,
        kv_overrides=job["overrides"] or None,
        check="rules",
        library=library,
    )
    with model:
        for use in (_read,) if model.vocab_only else (_read, _generate, _embed, _translate):
            with contextlib.suppress(LlamaError):
                use(model)


def _project(job: dict[str, Any], library: Library) -> None:
    """Encode pictures of two sizes and a sound."""
    import numpy as np

    with Model(job["paths"][0], n_gpu_layers=0, check="rules", library=library) as model:
        projector = Projector(model, job["projector"], n_threads=1, use_gpu=False, check="rules")
        makes: list[list[list[int] | MediaChunk]] = []
        for height, width in _PICTURES if projector.supports_images else ():
            with contextlib.suppress(LlamaError):
                makes.append(projector.image_chunks(np.full((height, width, 3), 99, np.uint8)))
        if projector.supports_audio:
            with contextlib.suppress(LlamaError):
                makes.append(projector.audio_chunks(np.zeros(_N_SAMPLES, np.float32)))
        for chunk in (c for chunks in makes for c in chunks if isinstance(c, MediaChunk)):
            with contextlib.suppress(LlamaError):
                projector.encode(chunk)


def _read(model: Model) -> None:
    vocab = model.vocab
    repr((model.description, model.metadata, model.chat_template, vocab.bos, vocab.eos, vocab.eot))
    vocab.tokenize(_TEXT, parse_special=True)
    vocab.detokenize(range(len(vocab)), special=True)


def _generate(model: Model) -> None:
    with Context(model, n_ctx=_N_CTX, n_batch=_N_CTX, n_threads=1) as context:
        for tokens, past in (([1, 2, 3], 0), ([0], 3)):
            batch = Batch(len(tokens), library=model.library)
            batch.fill(tokens, past)
            context.decode(batch)
            context.argmax()


def _embed(model: Model) -> None:
    context = Context(
        model,
        n_ctx=_N_CTX,
        n_batch=_N_CTX,
        n_ubatch=_N_CTX,
        n_seq_max=2,
        n_threads=1,
        embeddings=True,
        kv_unified=True,
    )
    with context:
        batch = Batch(4, library=model.library)
        for token, pos, seq_id in ((1, 0, 0), (2, 1, 0), (3, 2, 0), (2, 0, 1)):
            batch.add(token, pos, (seq_id,), True)
        (context.encode if context.kind.has_encoder else context.decode)(batch)


def _translate(model: Model) -> None:
    if model.has_encoder and model.has_decoder:
        with Context(model, n_ctx=_N_CTX, n_threads=1) as context:
            batch = Batch(3, library=model.library)
            batch.fill([1, 2, 3], 0)
            context.encode(batch)
            context.decode(batch)
