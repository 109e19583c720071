"""Sampler chains: from logits to a token."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import GenerationError, ValidationError
from ..context.context import Context
from ..model.model import Model
from .candidates import Candidates, check_logits
from .custom_sampler import CustomSampler
from .samplers import MAX_LAST_N, MIN_REPEAT, MIN_TEMPERATURE, SamplerKinds, available
from .topk_preselect import Preselection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "MAX_LAST_N",
    "MIN_REPEAT",
    "MIN_TEMPERATURE",
    "Rules",
    "SamplerChain",
    "available",
]

_NO_SEED = 2**32 - 1
_TOP_BYTES = slice(3 if sys.byteorder == "little" else 0, None, 4)  # of each float
# Up to here Python checks the logits in 20 us, so that nobody waits 60 ms for numpy to load.
_SMALL_VOCAB = 2048


class Rules(Protocol):
    """What may come next in a text, as a `Grammar` says it."""

    @property
    def model(self) -> Model:
        """Whose tokens they are."""

    def allows(self, token: int) -> bool:
        """Whether *token* may come next; nothing changes."""

    def apply(self, candidates: Candidates) -> None:
        """Leave no candidate that may not come next."""

    def accept(self, token: int) -> None:
        """Go on by *token*."""

    def reset(self) -> None:
        """Begin again."""


class SamplerChain(SamplerKinds):
    """An ordered chain of samplers; the last one (greedy, dist, mirostat) selects the token.

    Each `add_*` returns the chain, so they can be strung together. One thread at a time may use
    a chain; chains of one model are independent.

    Args:
        model: Whose vocabulary the samplers work on; closes this chain when it closes.
    C: llama_sampler_chain_init
    """

    def __init__(self, model: Model) -> None:
        self.model, self._lib = model, model.library.lib
        params = self._lib.llama_sampler_chain_default_params()
        params.no_perf = True
        _ = model.ptr  # raises when it is closed
        self._free = _Free(self._lib.llama_sampler_free)
        super().__init__(self._lib.llama_sampler_chain_init(params), self._free, parent=model)
        self._sample, self._buffer = self._lib.llama_sampler_sample, model.library.ffi.buffer
        self._selects = False  # whether the last sampler selects a token
        self._preselection = Preselection(model.vocab.n_tokens)
        self._candidates: Candidates | None = None
        self._customs: list[CustomSampler] = []
        self._appliers: list[CustomSampler] = []  # those that work on candidates
        self._grammar: Rules | None = None
        self._in_call = False  # whether Python functions may be running
        self._n_accepted = 0
        self._in_c = model.vocab.n_tokens <= _SMALL_VOCAB
        self._row_bytes = model.vocab.n_tokens * 4

    def __len__(self) -> int:
        return int(self._lib.llama_sampler_chain_n(self.ptr))

    @property
    def names(self) -> list[str]:
        """What C calls its samplers; `?` before a name means that it changes nothing.

        C: llama_sampler_name
        """
        ffi, lib, ptr = self.model.library.ffi, self._lib, self.ptr
        samplers = (lib.llama_sampler_chain_get(ptr, i) for i in range(len(self)))
        return [ffi.string(lib.llama_sampler_name(s)).decode() for s in samplers]

    @property
    def seed(self) -> int | None:
        """The seed in use of the last sampler that tells it: dist, mirostat, mirostat_v2.

        C: llama_sampler_get_seed
        """
        seed = int(self._lib.llama_sampler_get_seed(self.ptr))
        return None if seed == _NO_SEED else seed

    @property
    def takes_largest(self) -> bool:
        """Whether `sample` is `Context.argmax`, and only Python's samplers hear of the token."""
        # Where numpy is there already, its argmax takes a quarter of C's time for small ones, too.
        return (
            self._preselection.is_argmax
            and self._grammar is None
            and ("numpy" in sys.modules or not self._in_c)
        )

    def add_custom(self, sampler: CustomSampler) -> SamplerChain:
        """Add a sampler written in Python.

        Raises:
            ValidationError: It was made for another model.
        C: llama_sampler_init
        """
        if sampler.model is not self.model:
            raise ValidationError("the custom sampler was made for another model than the chain")
        _ = self._growable()
        self._free.keeps.append(sampler.memory)
        self._customs.append(sampler)
        self._add(sampler.new_sampler(), selects=self._selects or sampler.changes)
        if sampler.changes:
            self._appliers.append(sampler)
            self._preselection.changes()
            self._in_c = False
        return self

    def add_grammar(self, grammar: Rules) -> SamplerChain:
        """Let only tokens through that *grammar* allows.

        It stays outside the C chain, where C aborts when a token is accepted that the grammar
        rejects. As in llama-cli a token is chosen first, and only if the grammar rejects it all
        tokens are put to it and another one is chosen.

        Raises:
            ValidationError: It was made for another model, or the chain has a grammar already.
        """
        _ = self.ptr  # raises when it is closed
        if grammar.model is not self.model:
            raise ValidationError("the grammar was made for another model than the chain")
        if self._grammar is not None:
            raise ValidationError("the chain has a grammar already")
        self._grammar = grammar
        self._in_c = False
        return self

    def sample(self, context: Context, i: int = -1) -> int:
        """Choose a token from output *i* of the last decode, and accept it.

        The draws are C's: where numpy narrows the candidates down first, it leaves all that C
        could take.

        Raises:
            ValidationError: That token's output was not asked for, or the chain does not end with
                a sampler that selects, or belongs to another model.
            GenerationError: The logits have NaN, no token is allowed, or none was selected; then
                nothing was accepted.
        C: llama_sampler_sample, or its parts
        """
        if context.model is not self.model:
            raise ValidationError("the chain was made for another model than the context")
        if not self._selects:
            self._check_selects()
        if self._in_c and not self.takes_largest:
            return self._sample_in_c(context, i)
        # Python functions may close the context before the grammar wants the logits again.
        again = self._grammar is not None and bool(self._appliers)
        logits = context.logits(i, copy=again)
        token = self._choose(logits)
        if self._grammar is not None and not self._grammar.allows(token):
            token = self._choose_allowed(logits, self._grammar)
        self.accept(token, grammar=True)
        return token

    def apply(self, candidates: Candidates) -> None:
        """Let every sampler work on *candidates*. C: llama_sampler_apply.

        Raises:
            ValidationError: They are of another model, empty, or their ids are no tokens.
            GenerationError: A logit is NaN or +inf, or all are -inf.
        """
        if candidates.model is not self.model:
            raise ValidationError("the chain was made for another model than the candidates")
        was_sorted = candidates.sorted
        candidates.changed()
        candidates.struct.sorted = was_sorted
        self._apply(candidates)

    def choose(self, candidates: Candidates) -> int:
        """Apply the chain and return the token that it selected, without accepting it.

        Raises:
            ValidationError: As `apply`, or the chain does not end with a sampler that selects.
            GenerationError: As `apply`, or no token was selected.
        """
        self._check_selects()
        self.apply(candidates)
        return candidates.token()

    def accept(self, token: int, *, grammar: bool = False) -> None:
        """Tell the samplers that *token* was chosen; penalties and dry count it.

        Args:
            token: Token id.
            grammar: Whether it continues the text that the grammar is about. A prompt does not.

        Raises:
            ValidationError: No such token, or the grammar rejects it.
        C: llama_sampler_accept
        """
        token, ptr = self.model.vocab.check(token), self.ptr
        if grammar and self._grammar is not None:
            self._grammar.accept(token)
        self._n_accepted += 1
        if self._preselection.is_argmax:  # what C has of it remembers nothing
            for custom in self._customs:
                if custom.accept is not None:
                    custom.accept(token)
            return
        self._call(self._lib.llama_sampler_accept, ptr, token)

    def reset(self) -> None:
        """Forget accepted tokens and restart the random draws. C: llama_sampler_reset."""
        self._n_accepted = 0
        if self._grammar is not None:
            self._grammar.reset()
        self._call(self._lib.llama_sampler_reset, self.ptr)

    def _sample_in_c(self, context: Context, i: int) -> int:
        ptr, row = self._ptr or self.ptr, context.row(i)
        # NaN and infinities have one of two values in their top byte, other logits hardly ever;
        # for so few importing numpy would take longer than many answers.
        top = bytes(self._buffer(row, self._row_bytes))[_TOP_BYTES]
        if 0x7F in top or 0xFF in top:
            logits = memoryview(self._buffer(row, self._row_bytes)).cast("f")
            total = sum(logits)
            check_logits(max(logits) if total == -math.inf else total)
        self._n_accepted += 1
        token: int = self._call(self._sample, ptr, context.ptr, i)
        return token

    def _choose(self, logits: NDArray[np.float32]) -> int:
        if self._preselection.is_argmax:
            _ = self.ptr
            token = int(logits.argmax())  # of NaN, where there is one
            check_logits(float(logits[token]))
            return token
        ids = self._preselection.ids(logits, self._n_accepted)
        candidates = self._filled(logits, ids)
        self._apply(candidates)
        return candidates.token()

    def _choose_allowed(self, logits: NDArray[np.float32], grammar: Rules) -> int:
        candidates = self._filled(logits, None)
        grammar.apply(candidates)
        if candidates.array["logit"].max() == -math.inf:
            raise GenerationError(
                f"the grammar allows none of the {candidates.n_vocab} tokens; it may want "
                "characters that the vocabulary cannot spell, or it has a dead end"
            )
        self._apply(candidates)
        return candidates.token()

    def _filled(self, logits: NDArray[np.float32], ids: NDArray[Any] | None) -> Candidates:
        if self._candidates is None:
            self._candidates = Candidates(self.model)
        if ids is None:
            self._candidates.fill(logits)
        else:
            self._candidates.fill_some(logits, ids)
        return self._candidates

    def _apply(self, candidates: Candidates) -> None:
        for custom in self._appliers:
            custom.candidates = candidates
        self._call(self._lib.llama_sampler_apply, self.ptr, candidates.struct)

    def _check_selects(self) -> None:
        if not self._selects:
            raise ValidationError(
                "the chain is empty or does not end with a sampler that selects; add greedy or dist"
            )

    def _call(self, function: Any, *args: Any) -> Any:
        """Call C, and raise what the Python functions raised; they may close the chain."""
        if not self._customs:
            return function(*args)
        held, before, self._in_call = self.hold(), self._in_call, True
        try:
            result = function(*args)
        finally:
            self._in_call = before
            del held
        for custom in self._customs:
            if custom.relay.error is not None:
                custom.relay.check()
        return result

    def _add(self, sampler: Any, *, selects: bool = False) -> None:
        if not sampler:
            raise ValidationError("llama.cpp refused the sampler's parameters")
        try:
            ptr = self._growable()
        except ValidationError:
            self._lib.llama_sampler_free(sampler)
            raise
        self._lib.llama_sampler_chain_add(ptr, sampler)  # the chain owns it now
        self._selects = selects

    def _growable(self) -> Any:
        """Return the C pointer of a chain that can take one more sampler."""
        if self._in_call:  # C walks through its samplers
            raise ValidationError("a chain cannot get longer while one of its functions runs")
        return self.ptr


class _Free:
    """llama_sampler_free, and the memory that C reads while it frees.

    Not the Python functions: those may refer to the chain, which then would never be collected.
    """

    def __init__(self, free: Any) -> None:
        self._free = free
        self.keeps: list[Any] = []

    def __call__(self, ptr: Any) -> None:
        self._free(ptr)
