"""Sampler chains: from logits to a token."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import GenerationError, ValidationError
from ...validation import INT32_MAX, check_float, check_int, check_type
from .. import compat
from ..context.context import Context
from ..logits import check_logits
from ..memory_limits import check_bytes
from ..model.model import Model
from ..native_object import NativeObject
from .candidates import Candidates
from .custom_sampler import CustomSampler
from .links import Link, Traits
from .samplers import (
    MAX_FLOAT,
    MAX_INFILL,
    MAX_LAST_N,
    MIN_REPEAT,
    MIN_TEMPERATURE,
    check_bias,
    check_min_keep,
    check_seed,
    check_temperature,
    dry_breakers,
    new_infill,
    new_sampler,
    require,
)
from .token_filters import TokenConstraint, TokenMask
from .topk_preselect import Preselection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

__all__ = ["SamplerChain"]

_NO_SEED = 2**32 - 1
_CHAIN_BYTES = 2**22  # with the thread-local data that the first one may need
_TOP_BYTES = slice(3 if sys.byteorder == "little" else 0, None, 4)  # of each float
# Up to this size Python checks the logits in 20 us, which is not worth 60 ms to import numpy.
_SMALL_VOCAB = 2048


class SamplerChain(NativeObject):
    """An ordered chain of samplers; the last one (greedy, dist, mirostat) selects the token.

    Each `add_*` returns the chain, so that calls can be chained. Only one thread at a time may
    use a chain; chains of one model are independent.

    All `add_*` raise ValidationError if a number is out of range or the build does not have the
    sampler. A *seed* of 0 to 2^32 - 2 makes `reset` restart the same draws; None, -1 and C's own
    2^32 - 1 stand for a random seed, a new one at each reset. *min_keep* is the number of
    candidates to keep in any case.

    Args:
        model: The model whose tokens are sampled; closes this chain when it closes.

    Raises:
        OutOfMemoryError: A limit leaves almost no memory to this process.
    C: llama_sampler_chain_init
    """

    def __init__(self, model: Model) -> None:
        check_type("model", model, Model)
        self.model, self._lib = model, model.library.lib
        params = self._lib.llama_sampler_chain_default_params()
        params.no_perf = True
        _ = model.ptr  # raises if closed
        check_bytes(_CHAIN_BYTES, "a sampler chain")
        self._free = _Free(self._lib.llama_sampler_free)
        super().__init__(self._lib.llama_sampler_chain_init(params), self._free, parent=model)
        self._sample, self._buffer = self._lib.llama_sampler_sample, model.library.ffi.buffer
        self._candidates: Candidates | None = None
        self._grammar: TokenConstraint | None = None
        self._mask: TokenMask | None = None
        self._links: list[Link] = []
        self._use(Traits(model.vocab.n_tokens))
        self._in_call = False  # whether Python functions may be running
        self._n_accepted = 0
        self._row_bytes = model.vocab.n_tokens * 4

    def __repr__(self) -> str:
        names = "closed" if self.closed else "; ".join(self.names) or "no samplers"
        return f"<SamplerChain {names}>"

    def __len__(self) -> int:
        return int(self._lib.llama_sampler_chain_n(self.ptr))

    @property
    def names(self) -> list[str]:
        """C's names of the samplers; `?` before a name means that it has no effect.

        C: llama_sampler_name
        """
        ffi, lib, ptr = self.model.library.ffi, self._lib, self.ptr
        samplers = (lib.llama_sampler_chain_get(ptr, i) for i in range(len(self)))
        return [ffi.string(lib.llama_sampler_name(s)).decode() for s in samplers]

    @property
    def seed(self) -> int | None:
        """The current seed of the last sampler that reports one: dist, mirostat, mirostat_v2.

        C: llama_sampler_get_seed
        """
        seed = int(self._lib.llama_sampler_get_seed(self.ptr))
        return None if seed == _NO_SEED else seed

    @property
    def takes_largest(self) -> bool:
        """Whether `sample` equals `Context.argmax`, so only custom samplers need the token."""
        # Once numpy is imported, its argmax takes a quarter of C's time even for small ones.
        return (
            self._preselection.is_argmax
            and self._grammar is None
            and self._mask is None
            and ("numpy" in sys.modules or not self._in_c)
        )

    @property
    def candidates(self) -> Candidates | None:
        """What the samplers left of the last `sample_logits`; None where they did not run."""
        return self._candidates

    def add_greedy(self) -> Self:
        """Select the most probable token. C: llama_sampler_init_greedy."""
        return self._add(self._new("greedy"), Link(Preselection.add_greedy, selects=True))

    def add_dist(self, seed: int | None) -> Self:
        """Draw by probability. C: llama_sampler_init_dist."""
        sampler = compat.sampler_dist(self.model.library, check_seed(seed))
        return self._add(sampler, Link(selects=True))

    def add_top_k(self, k: int) -> Self:
        """Keep the k most probable tokens; k <= 0 keeps all. C: llama_sampler_init_top_k."""
        k = check_int("k", k, -INT32_MAX)
        sampler = self._new("top_k", k)
        return self._add(sampler, Link(lambda p: p.add_top_k(k)) if k > 0 else Link())

    def add_top_p(self, p: float, min_keep: int = 1) -> Self:
        """Keep the most probable tokens up to a total of p. C: llama_sampler_init_top_p."""
        return self._add_other("top_p", check_float("p", p, 0, 1), check_min_keep(min_keep))

    def add_min_p(self, p: float, min_keep: int = 1) -> Self:
        """Keep tokens with at least p times the best's probability. C: llama_sampler_init_min_p."""
        return self._add_other("min_p", check_float("p", p, 0, 1), check_min_keep(min_keep))

    def add_typical(self, p: float, min_keep: int = 1) -> Self:
        """Keep the tokens with information nearest to the entropy, up to a total of p.

        If the probability of a candidate is 0, C's entropy is NaN and any of them may be kept.
        C: llama_sampler_init_typical
        """
        return self._add_other("typical", check_float("p", p, 0, 1), check_min_keep(min_keep))

    def add_temp(self, temperature: float) -> Self:
        """Divide the logits by *temperature*, above 0. C: llama_sampler_init_temp.

        For temperature 0 use `add_greedy`.
        """
        return self._add_other("temp", check_temperature(temperature))

    def add_temp_ext(self, temperature: float, delta: float, exponent: float = 1.0) -> Self:
        """Divide the logits by a temperature that grows with their entropy.

        It goes from *temperature* - *delta* to *temperature* + *delta* by (entropy / greatest
        entropy) ** *exponent*, and stays above 0, which C would divide by.
        C: llama_sampler_init_temp_ext
        """
        temperature = check_temperature(temperature)
        delta = check_float("delta", delta, 0, MAX_FLOAT)
        exponent = check_float("exponent", exponent, 0, 100)
        if temperature - delta < MIN_TEMPERATURE:
            high = temperature + delta
            temperature, delta = (high + MIN_TEMPERATURE) / 2, (high - MIN_TEMPERATURE) / 2
        return self._add_other("temp_ext", temperature, delta, exponent)

    def add_xtc(
        self, probability: float, threshold: float, min_keep: int = 1, seed: int | None = None
    ) -> Self:
        """Sometimes drop the most probable tokens, for more variety (exclude top choices).

        Args:
            probability: How often, 0 to 1.
            threshold: Of the tokens with at least this probability only the least likely stays;
                above 0.5 the sampler is off.
            min_keep: It does nothing if fewer would be left.
            seed: Seed of its own draws.
        C: llama_sampler_init_xtc, since b3995
        """
        return self._add_other(
            "xtc",
            check_float("probability", probability, 0, 1),
            check_float("threshold", threshold, 0, 1),
            check_min_keep(min_keep),
            check_seed(seed),
        )

    def add_top_n_sigma(self, n: float) -> Self:
        """Forbid logits more than n standard deviations below the largest; above 0.

        C: llama_sampler_init_top_n_sigma, since b4753
        """
        return self._add_other("top_n_sigma", check_float("n", n, 0, MAX_FLOAT, above=True))

    def add_mirostat(
        self, seed: int | None, tau: float = 5.0, eta: float = 0.1, m: int = 100
    ) -> Self:
        """Draw so that the surprise stays near *tau* bits (Mirostat, arXiv:2007.14966).

        Args:
            seed: Seed of the draws.
            tau: Target surprise, 0 to 100.
            eta: Learning rate, 0 to 100.
            m: Number of tokens from which the distribution is estimated; at least 2.
        C: llama_sampler_init_mirostat
        """
        return self._add_other(
            "mirostat",
            self.model.vocab.n_tokens,
            check_seed(seed),
            check_float("tau", tau, 0, 100),
            check_float("eta", eta, 0, 100),
            check_int("m", m, 2),
            selects=True,
        )

    def add_mirostat_v2(self, seed: int | None, tau: float = 5.0, eta: float = 0.1) -> Self:
        """Draw as `add_mirostat` without the estimate. C: llama_sampler_init_mirostat_v2."""
        numbers = check_seed(seed), check_float("tau", tau, 0, 100), check_float("eta", eta, 0, 100)
        return self._add_other("mirostat_v2", *numbers, selects=True)

    def add_adaptive_p(self, target: float, decay: float, seed: int | None) -> Self:
        """Draw so that the probability of the chosen tokens stays near *target*.

        Args:
            target: Target probability, 0 to 1; a negative one (to -1) draws by probability.
            decay: How long chosen tokens count, 0 to 0.99: about 1 / (1 - decay) tokens.
            seed: Seed of the draws.
        C: llama_sampler_init_adaptive_p, since b7836
        """
        target, decay = check_float("target", target, -1, 1), check_float("decay", decay, 0, 0.99)
        return self._add_other("adaptive_p", target, decay, check_seed(seed), selects=True)

    def add_penalties(
        self, last_n: int, repeat: float = 1.0, frequency: float = 0.0, presence: float = 0.0
    ) -> Self:
        """Penalize recently accepted tokens.

        Args:
            last_n: Number of accepted tokens that count, at most 2^20; 0 = off.
            repeat: Divides the logit (multiplies a negative one); 1.0 = off, at least 0.001.
            frequency: Subtracted per occurrence; 0.0 = off.
            presence: Subtracted once; 0.0 = off.
        C: llama_sampler_init_penalties
        """
        last_n = check_int("last_n", last_n, 0, MAX_LAST_N)
        repeat = check_float("repeat", repeat, MIN_REPEAT, 1000)
        frequency = check_float("frequency", frequency, -1000, 1000)
        presence = check_float("presence", presence, -1000, 1000)
        library, model = self.model.library, self.model.ptr
        sampler = compat.sampler_penalties(library, model, last_n, repeat, frequency, presence)
        lowers = repeat >= 1 and frequency >= 0 and presence >= 0
        return self._add(sampler, Link(lambda p: p.add_penalty(last_n)) if lowers else Link())

    def add_dry(
        self,
        multiplier: float,
        base: float = 1.75,
        allowed_length: int = 2,
        penalty_last_n: int = -1,
        seq_breakers: Sequence[str] = ("\n", ":", '"', "*"),
    ) -> Self:
        """Penalize tokens that would continue a repetition (DRY).

        The penalty is multiplier * base ** (length of the repetition - allowed_length).

        Args:
            multiplier: 0.0 = off, at most 1000.
            base: 1 to 1000.
            allowed_length: Repetitions shorter than this are not penalized.
            penalty_last_n: Number of accepted tokens to search, at most 2^20; 0 = off, -1 = the
                model's training context.
            seq_breakers: Strings that end a repetition: ASCII, of 1 to 40 characters, at most 64.
                (C splits them between bytes, and old tokenizers abort on half a character.) Each
                costs a pass over the vocabulary here.
        C: llama_sampler_init_dry, since b3995
        """
        multiplier, base = (
            check_float("multiplier", multiplier, 0, 1000),
            check_float("base", base, 1, 1000),
        )
        allowed_length = check_int("allowed_length", allowed_length, 0)
        last_n = check_int("penalty_last_n", penalty_last_n, -1, MAX_LAST_N)
        if last_n < 0:
            last_n = min(self.model.n_ctx_train, MAX_LAST_N)
        breakers = dry_breakers(self.model, seq_breakers)
        library = self.model.library
        require(library, "dry")
        numbers = multiplier, base, allowed_length, last_n
        sampler = compat.sampler_dry(library, self.model.ptr, *numbers, breakers)
        return self._add(sampler, Link(lambda p: p.add_penalty(last_n)))

    def add_logit_bias(self, bias: Mapping[int, float]) -> Self:
        """Add to the logits of tokens; -inf forbids a token.

        Args:
            bias: Token -> bias, -10^6 to 10^6.
        C: llama_sampler_init_logit_bias
        """
        ffi, vocab = self.model.library.ffi, self.model.vocab
        pairs = {vocab.check(token): check_bias(token, value) for token, value in bias.items()}
        array = ffi.new("llama_logit_bias[]", list(pairs.items()))
        sampler = self._new("logit_bias", vocab.n_tokens, len(pairs), array)
        may_forbid_all = -math.inf in pairs.values()
        return self._add(sampler, Link(lambda p: p.add_bias(pairs), in_c=not may_forbid_all))

    def add_infill(self) -> Self:
        """Prefer whole words and the end, for fill-in-the-middle.

        It compares all candidates in pairs: a top-k of at most 1,024 must come before it.
        C: llama_sampler_init_infill, since b3995
        """
        link = Link(max_candidates=MAX_INFILL)
        Traits(self.model.vocab.n_tokens, [*self._links, link])  # raises before C is asked
        return self._add(new_infill(self.model), link)

    def add_custom(self, sampler: CustomSampler) -> Self:
        """Add a sampler written in Python.

        Raises:
            ValidationError: It belongs to another model.
        C: llama_sampler_init
        """
        if sampler.model is not self.model:
            raise ValidationError("the custom sampler belongs to another model than the chain")
        _ = self._editable()
        self._free.keeps.append(sampler.memory)
        if sampler.changes:
            link = Link(selects=True, in_c=False, custom=sampler)
        else:
            link = Link(lambda _: None, selects=None, custom=sampler)
        return self._add(sampler.new_sampler(), link)

    def add_grammar(self, grammar: TokenConstraint) -> Self:
        """Allow only tokens that *grammar* allows.

        It stays outside the C chain, which aborts when it accepts a token that the grammar
        rejects. As in llama-cli a token is chosen first. Only if the grammar rejects it, the
        grammar is applied to all tokens and another one is chosen.

        Raises:
            ValidationError: It belongs to another model, or the chain already has a grammar.
        """
        _ = self.ptr  # raises if closed
        if grammar.model is not self.model:
            raise ValidationError("the grammar belongs to another model than the chain")
        if self._grammar is not None:
            raise ValidationError("the chain already has a grammar")
        self._grammar, self._in_c = grammar, False
        return self

    def add_mask(self, mask: TokenMask) -> Self:
        """Pass only tokens that *mask* allows to the samplers, wherever they stand in the chain.

        Unlike a custom sampler it spares C the tokens that cannot be chosen. `sample` asks it, and
        it accepts the tokens that a grammar would accept.

        Raises:
            ValidationError: It belongs to another model, or the chain already has a mask.
        """
        _ = self.ptr  # raises if closed
        if mask.model is not self.model:
            raise ValidationError("the mask belongs to another model than the chain")
        if self._mask is not None:
            raise ValidationError("the chain already has a mask")
        self._mask, self._in_c = mask, False
        return self

    def insert(self, i: int, chain: SamplerChain) -> Self:
        """Move the samplers of another chain, which is empty then, before sampler *i*.

        Args:
            i: Index in `names`; negative ones count from the end, and `len(chain)` is the end.
            chain: A chain of the same model, without grammar and mask.

        Raises:
            ValidationError: There is no sampler *i*, or the chain does not fit; nothing changed.
        C: llama_sampler_chain_remove, llama_sampler_chain_add
        """
        i = self._index(i, end=len(self._links) + 1)
        self._splice(i, i, chain)
        return self

    def remove(self, i: int) -> SamplerChain:
        """Remove sampler *i*; return it, with its state, as a chain to insert elsewhere.

        Args:
            i: Index in `names`; negative ones count from the end.

        Raises:
            ValidationError: There is no sampler *i*, or another one cannot do without it.
        C: llama_sampler_chain_remove
        """
        i = self._index(i, end=len(self._links))
        return self._splice(i, i + 1, SamplerChain(self.model))

    def replace(self, i: int, chain: SamplerChain) -> SamplerChain:
        """Put the samplers of another chain in place of sampler *i*, which is returned.

        Args:
            i: See `remove`.
            chain: See `insert`.

        Raises:
            ValidationError: As for `insert`.
        C: llama_sampler_chain_remove, llama_sampler_chain_add
        """
        i = self._index(i, end=len(self._links))
        return self._splice(i, i + 1, chain)

    def clone(self) -> SamplerChain:
        """Return another chain with the same samplers, as after `reset`.

        It has accepted nothing, and the same seed makes the same draws. Most builds copy the state
        of penalties, mirostat or adaptive_p wrongly, so no state is copied.

        Raises:
            ValidationError: The chain has a grammar, a mask, or a sampler written in Python.
        C: llama_sampler_clone, llama_sampler_reset
        """
        if self._grammar is not None or self._mask is not None or self._customs:
            raise ValidationError(
                "a chain with a grammar, a mask or a custom sampler cannot be cloned; clone it "
                "first and add them to each"
            )
        lib, ptr = self._lib, self.ptr
        twin = SamplerChain(self.model)
        for i, link in enumerate(self._links):
            twin._add(lib.llama_sampler_clone(lib.llama_sampler_chain_get(ptr, i)), link)
        twin.reset()
        return twin

    def sample(self, context: Context, i: int = -1) -> int:
        """Choose a token from output *i* of the last decode, and accept it.

        C draws the token. Where numpy preselects candidates, it keeps all that C could choose.

        Raises:
            ValidationError: That output was not requested, or the chain does not end with a
                sampler that selects, or it belongs to another model.
            GenerationError: The logits contain NaN, no token is allowed, or none was selected;
                then nothing was accepted.
        C: llama_sampler_sample, or its parts
        """
        if context.model is not self.model:
            raise ValidationError("the chain belongs to another model than the context")
        if not self._selects:
            self._check_selects()
        if self._in_c and not self.takes_largest:
            return self._sample_in_c(context, i)
        # Python functions may close the context before the grammar needs the logits again.
        again = (self._grammar is not None or self._mask is not None) and bool(self._appliers)
        return self._sample_from(context.logits(i, copy=again))

    def sample_logits(self, logits: NDArray[np.float32]) -> int:
        """Choose a token from *logits*, (n_vocab,) float32, and accept it; see `sample`.

        Raises:
            ValidationError: The shape is another, or the chain does not end with a sampler that
                selects.
            GenerationError: As `sample`.
        """
        self._check_selects()
        n_vocab = len(self.model.vocab)
        if logits.shape != (n_vocab,):
            raise ValidationError(f"logits must have the shape ({n_vocab},), got {logits.shape}")
        return self._sample_from(logits)

    def _sample_from(self, logits: NDArray[np.float32]) -> int:
        token = self._choose(logits)
        if self._grammar is not None and not self._grammar.allows(token):
            token = self._choose_allowed(logits, self._grammar)
        while self._mask is not None and self._mask.rejects(token):
            token = self._choose(logits)
        self.accept(token, grammar=True)
        return token

    def apply(self, candidates: Candidates) -> None:
        """Apply every sampler to *candidates*. C: llama_sampler_apply.

        Raises:
            ValidationError: They belong to another model, are empty, or an id is not a token.
            GenerationError: A logit is NaN or +inf, or all are -inf.
        """
        if candidates.model is not self.model:
            raise ValidationError("the chain belongs to another model than the candidates")
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
        """Tell the samplers that *token* was chosen; penalties and DRY count it.

        Args:
            token: Token id.
            grammar: Whether the grammar and the mask accept it too; False for the tokens of a
                prompt.

        Raises:
            ValidationError: The token does not exist, or the grammar or the mask rejects it.
        C: llama_sampler_accept
        """
        token, ptr = self.model.vocab.check(token), self.ptr
        if grammar and self._grammar is not None:
            self._grammar.accept(token)
        if grammar and self._mask is not None:
            self._mask.accept(token)
        self._n_accepted += 1
        if self._preselection.is_argmax:  # C's greedy keeps no state
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
        if self._mask is not None:
            self._mask.reset()
        self._call(self._lib.llama_sampler_reset, self.ptr)

    def _sample_in_c(self, context: Context, i: int) -> int:
        ptr, row = self._ptr or self.ptr, context.row(i)
        # NaN and infinities have one of two values in their top byte, other logits hardly ever.
        # Importing numpy would take longer than generating many answers with so few tokens.
        top = bytes(self._buffer(row, self._row_bytes))[_TOP_BYTES]
        if 0x7F in top or 0xFF in top:
            logits = memoryview(self._buffer(row, self._row_bytes)).cast("f")
            total = sum(logits)
            check_logits(max(logits) if total == -math.inf else total)
        self._n_accepted += 1
        token: int = self._call(self._sample, ptr, context.ptr, i)
        return token

    def _choose(self, logits: NDArray[np.float32]) -> int:
        if self._mask is not None and (allowed := self._mask.allowed()) is not None:
            return self._choose_masked(logits, allowed)
        if self._preselection.is_argmax:
            _ = self.ptr
            token = int(logits.argmax())  # the index of NaN if there is one
            check_logits(float(logits[token]))
            return token
        ids = self._preselection.ids(logits, self._n_accepted)
        candidates = self._filled(logits, ids)
        self._apply(candidates)
        return candidates.token()

    def _choose_masked(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_]) -> int:
        import numpy as np

        n_allowed = int(np.count_nonzero(allowed))
        if 2 * n_allowed > len(allowed):
            logits = logits.copy()
            logits[~allowed] = -math.inf
            if self._preselection.is_argmax:
                token = int(logits.argmax())
                check_logits(float(logits[token]))
                return token
            candidates = self._filled(logits, self._preselection.ids(logits, self._n_accepted))
        elif not n_allowed:
            raise GenerationError("the mask allows no token")
        else:
            tokens = allowed.nonzero()[0]
            best = int(tokens[logits[tokens].argmax()])
            check_logits(float(logits[best]))
            if self._preselection.is_argmax:
                return best
            candidates = self._filled(logits, tokens)
        self._apply(candidates)
        return candidates.token()

    def _choose_allowed(self, logits: NDArray[np.float32], grammar: TokenConstraint) -> int:
        candidates = self._filled(logits, None)
        grammar.apply(candidates)
        if candidates.array["logit"].max() == -math.inf:
            raise GenerationError(
                f"the grammar allows none of the {candidates.n_vocab} tokens; it may need "
                "characters that the vocabulary cannot spell, or have a dead end"
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
        """Call C, and raise what custom samplers raised; they may even close the chain."""
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

    def _new(self, name: str, *args: Any) -> Any:
        return new_sampler(self.model.library, name, *args)

    def _add_other(self, name: str, *args: Any, selects: bool = False) -> Self:
        """Add a sampler that needs the whole vocabulary."""
        return self._add(self._new(name, *args), Link(selects=selects))

    def _add(self, sampler: Any, link: Link) -> Self:
        if not sampler:
            raise ValidationError("llama.cpp refused the sampler's parameters")
        try:
            ptr = self._editable()
        except ValidationError:
            self._lib.llama_sampler_free(sampler)
            raise
        self._lib.llama_sampler_chain_add(ptr, sampler)  # the chain owns it now
        self._links.append(link)
        self._traits.add(link)
        self._use(self._traits)
        return self

    def _splice(self, start: int, end: int, chain: SamplerChain) -> SamplerChain:
        """Put the samplers of *chain* in place of *start* to *end* - 1; return those."""
        if chain is self or chain.model is not self.model:
            raise ValidationError("give another chain of the same model")
        if chain._grammar is not None or chain._mask is not None:
            raise ValidationError("the other chain has a grammar or a mask; add it to this chain")
        _ = self._editable(), chain._editable()
        links = [*self._links[:start], *chain._links, *self._links[end:]]
        Traits(self.model.vocab.n_tokens, links)  # raises before anything changes
        removed = SamplerChain(self.model)
        old, new = self._take(), chain._take()
        removed._set(self._links[start:end], old[start:end])
        self._set(links, [*old[:start], *new, *old[end:]])
        chain._set([], [])
        # C reads the memory of custom samplers while it frees them.
        removed._free.keeps += self._free.keeps
        self._free.keeps += chain._free.keeps
        removed._n_accepted = self._n_accepted
        self._n_accepted = max(self._n_accepted, chain._n_accepted)
        return removed

    def _use(self, traits: Traits) -> None:
        """Read once what sampling needs for every token."""
        self._traits, self._preselection = traits, traits.preselection
        self._selects = traits.selects
        self._customs, self._appliers = traits.customs, traits.appliers
        # Whether C may sample by itself: it aborts if no token can be chosen.
        is_free = self._grammar is None and self._mask is None
        self._in_c = traits.in_c and is_free and self.model.vocab.n_tokens <= _SMALL_VOCAB

    def _set(self, links: Sequence[Link], samplers: Sequence[Any]) -> None:
        """Fill the chain, whose C samplers were taken out."""
        for sampler in samplers:
            self._lib.llama_sampler_chain_add(self.ptr, sampler)
        self._links = [*links]
        self._use(Traits(self.model.vocab.n_tokens, links))

    def _take(self) -> list[Any]:
        """Take all C samplers out of the chain, which owns them no longer."""
        return [self._lib.llama_sampler_chain_remove(self.ptr, 0) for _ in range(len(self))]

    def _index(self, i: int, *, end: int) -> int:
        """Return the position *i*, below *end*, which may count from the end."""
        n, index = len(self._links), operator.index(i)
        index += n if index < 0 else 0
        if not 0 <= index < end:
            raise ValidationError(f"index {i}: the chain has {n} samplers, {self.names}")
        return index

    def _editable(self) -> Any:
        """Return the C pointer if the samplers can be changed."""
        if self._in_call:  # C is iterating over them
            raise ValidationError("a chain cannot be changed while one of its samplers is running")
        return self.ptr


class _Free:
    """llama_sampler_free, keeping the memory of custom samplers that C reads while it frees.

    It does not keep their Python functions: these may refer to the chain, which would then never
    be collected.
    """

    def __init__(self, free: Any) -> None:
        self._free = free
        self.keeps: list[Any] = []

    def __call__(self, ptr: Any) -> None:
        self._free(ptr)
