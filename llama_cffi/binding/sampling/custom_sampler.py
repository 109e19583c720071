"""Samplers written in Python and called by C."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import GenerationError, ValidationError
from ...validation import check_int
from .. import compat
from ..callbacks import ExceptionRelay
from ..model.model import Model
from .candidates import Candidates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..ffi_types import CData

    Apply = Callable[[NDArray[np.void]], int | None]

__all__ = ["CustomSampler"]


class CustomSampler:
    """Python functions as one sampler of a `SamplerChain`.

    Exceptions reach the caller of the chain unchanged. A function that is not given costs nothing
    per token. Only one thread at a time may use the chains that contain it.

    Args:
        model: The model of its chains.
        name: Its name in `SamplerChain.names`.
        apply: Called with the remaining candidates: an array with the fields `id`, `logit` and
            `p` (set by an earlier sampler, if any), shape (n,), valid during the call. It may
            change logits in place, -inf to forbid a token, and may return the id of the candidate
            to select. For the first sampler of a chain the candidates are the whole vocabulary,
            in order.
        accept: Called with every token that the chain accepts.
        reset: Called when the chain is reset.

    Attributes:
        relay: Holds an exception until C has returned.

    Raises:
        ValidationError: An argument is not callable, or the name contains NUL.
    C: struct llama_sampler_i
    """

    def __init__(
        self,
        model: Model,
        *,
        name: str = "python",
        apply: Apply | None = None,
        accept: Callable[[int], object] | None = None,
        reset: Callable[[], object] | None = None,
    ) -> None:
        for argument, function in (("apply", apply), ("accept", accept), ("reset", reset)):
            if function is not None and not callable(function):
                raise ValidationError(f"{argument} must be a function, got {function!r}")
        if "\0" in name:
            raise ValidationError(f"name={name!r} contains NUL")
        self.model, self.name, self.accept = model, name, accept
        self.relay = ExceptionRelay()
        self.candidates: Candidates | None = None  # those of the chain that is calling
        ffi, lib = model.library.ffi, model.library.lib
        # C reads the interface of its own build, which may be longer than the declared one, even
        # while it frees the sampler. So the owner of the chain keeps this memory.
        self.memory = ffi.new("void *[32]")
        self._interface = ffi.cast("struct llama_sampler_i *", self.memory)
        types = {field: info.type for field, info in ffi.typeof("struct llama_sampler_i").fields}
        c_name = ffi.new("char[]", name.encode("utf-8", "replace"))
        self._callbacks = {"name": ffi.callback(types["name"], lambda _sampler: c_name)}
        guard = self.relay.guard
        if accept is not None:
            self._callbacks["accept"] = guard(
                ffi, types["accept"], lambda _sampler, token: accept(token), None
            )
        if reset is not None:
            self._callbacks["reset"] = guard(ffi, types["reset"], lambda _sampler: reset(), None)
        self.changes = apply is not None
        if apply is not None:
            self._apply = apply
            on_apply = weakref.WeakMethod(self._on_apply)  # this object owns the callback

            def call_apply(sampler: Any, array: Any) -> None:
                if (method := on_apply()) is not None:
                    method(sampler, array)

            self._callbacks["apply"] = guard(ffi, types["apply"], call_apply, None)
        else:
            # C requires one. This function only compares the sampler's address with C's own.
            self._callbacks["apply"] = ffi.cast(types["apply"], lib.llama_sampler_get_seed)
        for field, callback in self._callbacks.items():
            setattr(self._interface, field, callback)

    def new_sampler(self) -> CData:
        """Return a C sampler that calls these functions, owned by the caller."""
        sampler: CData = compat.sampler_with_interface(self.model.library, self._interface)
        return sampler

    def _on_apply(self, _sampler: Any, _array: Any) -> None:
        candidates = self.candidates
        if candidates is None:
            raise ValidationError("a custom sampler can only be applied by its SamplerChain")
        array = candidates.array
        try:
            chosen = self._apply(array)
            candidates.changed()
            if chosen is not None:
                candidates.struct.selected = self._find(array, chosen)
        except BaseException:
            # C continues with the next sampler, which must not see NaN or invalid tokens.
            array["id"], array["logit"] = 0, 0.0
            candidates.struct.sorted = False
            raise

    def _find(self, array: NDArray[np.void], token: int) -> int:
        token = check_int(f"the token that {self.name!r} selects", token, 0)
        found = (array["id"] == token).nonzero()[0]
        if not len(found):
            raise GenerationError(
                f"the sampler {self.name!r} selected token {token}, which is not among the "
                f"{len(array)} candidates"
            )
        return int(found[0])
