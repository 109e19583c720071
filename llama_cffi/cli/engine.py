"""The engine of `llama-cffi generate`: options that are not given come from the environment."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from . import options

if TYPE_CHECKING:
    from ..engine.engine import Engine

__all__ = ["opened", "text_defaults"]


@contextlib.contextmanager
def opened(args: argparse.Namespace) -> Iterator[Engine]:
    """Provide the engine of the model of *args*."""
    from ..api.config import MODEL_FIELDS, LlamaConfig, fit_config
    from ..binding import LoraAdapter
    from ..engine import environment
    from ..engine.engine import Engine
    from ..generation.model_source import open_model

    given = options.running_options(args)
    if given.get("n_gpu_layers") != "auto":
        layers = given.get("n_gpu_layers")
        given["n_gpu_layers"] = environment.number("N_GPU_LAYERS", layers, -1, -(2**31) + 1)
    source, config = fit_config(options.model_source(args, "generate"), LlamaConfig(**given))
    given |= {name: getattr(config, name) for name in ("n_ctx", "n_gpu_layers")}
    of_model = {name: given.pop(name) for name in MODEL_FIELDS if name in given}
    adapter = given.pop("lora_path", None)
    with (
        open_model(source, **of_model)[0] as model,
        Engine(model, context_policy="error", **given) as engine,
    ):
        if adapter is not None:
            engine.context.set_adapters({LoraAdapter(model, adapter): 1.0})
        yield engine


def text_defaults() -> dict[str, Any]:
    """Return the options of a generation that are not given: those of `Engine`, less noise."""
    from ..engine import environment, preset

    return {**preset.text_defaults("error"), "special": environment.flag("SPECIAL", None, False)}
