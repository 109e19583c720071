"""Samplers written in Python, called by C."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import GenerationError, ValidationError
from ...validation import integer
from .. import compat
from ..callbacks import Relay
from ..model.model import Model
from .candidates import Candidates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Apply = Callable[[NDArray[Any]], int | None]

__all__ = ["CustomSampler"]


class CustomSampler:
    """Python functions as one link of a `SamplerChain`.

    What a function raises reaches the caller of the chain unchanged. A function that is not given
    costs nothing per token. One thread at a time may use the chains that have it.

    Args:
        model: The model of the chains that it is for.
        name: What `SamplerChain.names` shows.
        apply: Called with the candidates that are left: an array with the fields `id`, `logit`
            and `p` (what an earlier sampler computed, if any), shape (n,), valid during the call.
            It may write logits, in place, -inf to forbid a token, and may return the id of the
            candidate to select. Before any other sampler the candidates are the vocabulary, in
            its order.
        accept: Called with every token that the chain accepts.
        reset: Called when the chain is reset.

    Raises:
        ValidationError: Something given cannot be called, or the name has a NUL.
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
        for what, function in (("apply", apply), ("accept", accept), ("reset", reset)):
            if function is not None and not callable(function):
                raise ValidationError(f"{what}={function!r} cannot be called")
        if "\0" in name:
            raise ValidationError(f"name={name!r} has a NUL")
        self.model, self.name, self.accept = model, name, accept
        self.relay = Relay()
        self.candidates: Candidates | None = None  # what the chain that calls works on
        ffi, lib = model.library.ffi, model.library.lib
        # C reads the interface of its own build, which may be longer than the declared one. It
        # reads it while it frees the sampler, so the chain's owner keeps this memory.
        self.memory = ffi.new("void *[32]")
        self._interface = ffi.cast("struct llama_sampler_i *", self.memory)
        kinds = {field: info.type for field, info in ffi.typeof("struct llama_sampler_i").fields}
        text = ffi.new("char[]", name.encode("utf-8", "replace"))
        self._callbacks = {"name": ffi.callback(kinds["name"], lambda _sampler: text)}
        guard = self.relay.guard
        if accept is not None:
            self._callbacks["accept"] = guard(
                ffi, kinds["accept"], lambda _sampler, token: accept(token), None
            )
        if reset is not None:
            self._callbacks["reset"] = guard(ffi, kinds["reset"], lambda _sampler: reset(), None)
        self.changes = apply is not None
        if apply is not None:
            self._apply = apply
            self._callbacks["apply"] = guard(ffi, kinds["apply"], self._on_apply, None)
        else:
            # C wants one. This function compares the sampler's address with C's own and returns.
            self._callbacks["apply"] = ffi.cast(kinds["apply"], lib.llama_sampler_get_seed)
        for field, callback in self._callbacks.items():
            setattr(self._interface, field, callback)

    def new_sampler(self) -> Any:
        """Return a C sampler that calls these functions, owned by the caller."""
        return compat.sampler_with_interface(self.model.library, self._interface)

    def _on_apply(self, _sampler: Any, _array: Any) -> None:
        candidates = self.candidates
        if candidates is None:
            raise ValidationError("only the chain that a custom sampler was added to can apply it")
        array = candidates.array
        try:
            chosen = self._apply(array)
            candidates.changed()
            if chosen is not None:
                candidates.struct.selected = self._find(array, chosen)
        except BaseException:
            # C goes on with the next sampler, and must not meet NaN or what is no token.
            array["id"], array["logit"] = 0, 0.0
            candidates.struct.sorted = False
            raise

    def _find(self, array: NDArray[Any], token: int) -> int:
        token = integer(f"the token that {self.name!r} selects", token, 0)
        found = (array["id"] == token).nonzero()[0]
        if not len(found):
            raise GenerationError(
                f"the sampler {self.name!r} selected token {token}, which is not among the "
                f"{len(array)} candidates"
            )
        return int(found[0])
