"""The samplers of llama.cpp, with every number checked before C sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import ValidationError
from ...validation import INT32_MAX, integer, real
from .. import compat
from ..loading.library import Library
from ..model.model import Model
from ..native_object import Handle
from .topk_preselect import Preselection

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MAX_BIAS", "MAX_LAST_N", "MIN_REPEAT", "MIN_TEMPERATURE", "SamplerKinds", "available"]

MAX_LAST_N = 2**20  # C allocates the whole window at once
MIN_TEMPERATURE = 1e-4  # below, logits over temperature leave the range of a float
MIN_REPEAT = 1e-3  # below, a logit over the penalty does
_MAX_FLOAT = 1e30
MAX_BIAS = 1e6  # far above any logit, and small enough to be divided by temperatures
_ANY_SEED = 2**32 - 1  # LLAMA_DEFAULT_SEED
_MAX_BREAKERS, _MAX_BREAKER_BYTES = 64, 40  # C walks the vocabulary for each; it cuts longer ones
_MAX_INFILL, _PIECE_BYTES = 1024, 512

# The names that llama-cli's --samplers takes.
_CLI_NAMES = {
    "penalties": "penalties",
    "dry": "dry",
    "top_n_sigma": "top_n_sigma",
    "top_k": "top_k",
    "typ_p": "typical",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc": "xtc",
    "temperature": "temp_ext",
    "infill": "infill",
    "adaptive_p": "adaptive_p",
}


def available(library: Library) -> frozenset[str]:
    """Return the samplers that this build has, by the names that llama-cli's --samplers takes."""
    return frozenset(
        cli for cli, name in _CLI_NAMES.items() if library.has(f"llama_sampler_init_{name}")
    )


class SamplerKinds(Handle):
    """The `add_*` methods of `SamplerChain`; each returns the chain.

    A *seed* is 0 to 2^32 - 2, and then a reset restarts the same draws. None, -1 and C's own
    2^32 - 1 stand for a random one, another at each reset. *min_keep* candidates stay in any case.
    All raise ValidationError when a number is out of range or the build lacks the sampler.
    """

    model: Model
    _preselection: Preselection
    _in_c: bool  # whether C may sample by itself: a token that can be chosen exists for sure

    def add_greedy(self) -> Self:
        """Select the most probable token. C: llama_sampler_init_greedy."""
        self._add(self._new("greedy"), selects=True)
        self._preselection.takes_best()
        return self

    def add_dist(self, seed: int | None) -> Self:
        """Draw by probability. C: llama_sampler_init_dist."""
        seed = _seed(seed)
        if compat.dist_needs_softmax(self.model.library):
            self._add(self._new("softmax"))
        return self._add_changing("dist", seed, selects=True)

    def add_top_k(self, k: int) -> Self:
        """Keep the k most probable; k <= 0 keeps all. C: llama_sampler_init_top_k."""
        k = integer("k", k, -INT32_MAX)
        self._add(self._new("top_k", k))
        if k > 0:
            self._preselection.keeps(k)
        else:
            self._preselection.changes()
        return self

    def add_top_p(self, p: float, min_keep: int = 1) -> Self:
        """Keep the most probable up to total probability p. C: llama_sampler_init_top_p."""
        return self._add_changing("top_p", real("p", p, 0, 1), _min_keep(min_keep))

    def add_min_p(self, p: float, min_keep: int = 1) -> Self:
        """Keep tokens with at least p times the best's probability. C: llama_sampler_init_min_p."""
        return self._add_changing("min_p", real("p", p, 0, 1), _min_keep(min_keep))

    def add_typical(self, p: float, min_keep: int = 1) -> Self:
        """Keep the tokens whose information is nearest the entropy, up to total probability p.

        Where some candidate's probability is 0, C's entropy is NaN and it keeps any of them.
        C: llama_sampler_init_typical
        """
        return self._add_changing("typical", real("p", p, 0, 1), _min_keep(min_keep))

    def add_temp(self, temperature: float) -> Self:
        """Divide the logits; above 0, for 0 use greedy. C: llama_sampler_init_temp."""
        return self._add_changing("temp", _temperature(temperature))

    def add_temp_ext(self, temperature: float, delta: float, exponent: float = 1.0) -> Self:
        """Divide the logits by a temperature that grows with their entropy.

        It lies within *delta* of *temperature*, at (entropy / greatest entropy) ** exponent of
        the way; never below MIN_TEMPERATURE, where C would divide by 0.
        C: llama_sampler_init_temp_ext
        """
        temperature = _temperature(temperature)
        delta = real("delta", delta, 0, _MAX_FLOAT)
        exponent = real("exponent", exponent, 0, 100)
        if temperature - delta < MIN_TEMPERATURE:
            high = temperature + delta
            temperature, delta = (high + MIN_TEMPERATURE) / 2, (high - MIN_TEMPERATURE) / 2
        return self._add_changing("temp_ext", temperature, delta, exponent)

    def add_xtc(
        self, probability: float, threshold: float, min_keep: int = 1, seed: int | None = None
    ) -> Self:
        """Drop the most probable tokens sometimes, so that less likely ones get their turn.

        Args:
            probability: How often, 0 to 1.
            threshold: Of the tokens with at least this probability only the least likely stays;
                above 0.5 the sampler is off.
            min_keep: It does nothing where fewer would be left.
            seed: Of its own draws.
        C: llama_sampler_init_xtc, since b3995
        """
        return self._add_changing(
            "xtc",
            real("probability", probability, 0, 1),
            real("threshold", threshold, 0, 1),
            _min_keep(min_keep),
            _seed(seed),
        )

    def add_top_n_sigma(self, n: float) -> Self:
        """Forbid logits more than n standard deviations below the largest; above 0.

        C: llama_sampler_init_top_n_sigma, since b4753
        """
        return self._add_changing("top_n_sigma", real("n", n, 0, _MAX_FLOAT, above=True))

    def add_mirostat(
        self, seed: int | None, tau: float = 5.0, eta: float = 0.1, m: int = 100
    ) -> Self:
        """Draw so that the surprise stays near *tau* bits (Mirostat, arXiv:2007.14966).

        Args:
            seed: Of the draws.
            tau: Wanted surprise, 0 to 100.
            eta: How fast it is approached, 0 to 100.
            m: Tokens by which the distribution's shape is estimated; at least 2.
        C: llama_sampler_init_mirostat
        """
        return self._add_changing(
            "mirostat",
            self.model.vocab.n_tokens,
            _seed(seed),
            real("tau", tau, 0, 100),
            real("eta", eta, 0, 100),
            integer("m", m, 2),
            selects=True,
        )

    def add_mirostat_v2(self, seed: int | None, tau: float = 5.0, eta: float = 0.1) -> Self:
        """Draw as `add_mirostat` does, without an estimate. C: llama_sampler_init_mirostat_v2."""
        numbers = _seed(seed), real("tau", tau, 0, 100), real("eta", eta, 0, 100)
        return self._add_changing("mirostat_v2", *numbers, selects=True)

    def add_adaptive_p(self, target: float, decay: float, seed: int | None) -> Self:
        """Draw so that the probability of the chosen tokens stays near *target*.

        Args:
            target: Wanted probability, 0 to 1; negative (to -1) draws by probability.
            decay: How long chosen tokens count, 0 to 0.99: about 1 / (1 - decay) tokens.
            seed: Of the draws.
        C: llama_sampler_init_adaptive_p, since b7836
        """
        target, decay = real("target", target, -1, 1), real("decay", decay, 0, 0.99)
        return self._add_changing("adaptive_p", target, decay, _seed(seed), selects=True)

    def add_penalties(
        self, last_n: int, repeat: float = 1.0, frequency: float = 0.0, presence: float = 0.0
    ) -> Self:
        """Penalise tokens that were accepted lately.

        Args:
            last_n: How many accepted tokens count, at most 2^20; 0 = off.
            repeat: Divides (or multiplies, below zero) the logit; 1.0 = off, at least 0.001.
            frequency: Subtracted per occurrence; 0.0 = off.
            presence: Subtracted once; 0.0 = off.
        C: llama_sampler_init_penalties
        """
        last_n = integer("last_n", last_n, 0, MAX_LAST_N)
        repeat = real("repeat", repeat, MIN_REPEAT, 1000)
        frequency = real("frequency", frequency, -1000, 1000)
        presence = real("presence", presence, -1000, 1000)
        library, model = self.model.library, self.model.ptr
        self._add(compat.sampler_penalties(library, model, last_n, repeat, frequency, presence))
        if repeat >= 1 and frequency >= 0 and presence >= 0:
            self._preselection.lowers(last_n)
        else:
            self._preselection.changes()
        return self

    def add_dry(
        self,
        multiplier: float,
        base: float = 1.75,
        allowed_length: int = 2,
        penalty_last_n: int = -1,
        seq_breakers: Sequence[str] = ("\n", ":", '"', "*"),
    ) -> Self:
        """Penalise tokens that would continue a repetition.

        The penalty is multiplier * base ** (length of the repetition - allowed_length).

        Args:
            multiplier: 0.0 = off, at most 1000.
            base: 1 to 1000.
            allowed_length: Repetitions below this length go unpunished.
            penalty_last_n: How many accepted tokens are searched, at most 2^20; 0 = off, -1 = as
                many as the model was trained with.
            seq_breakers: Texts that no repetition reaches across: ASCII, 1 to 40 characters, 64
                of them. (C cuts them between bytes, and old tokenizers abort on half a
                character.) Each costs a walk over the vocabulary, here.
        C: llama_sampler_init_dry, since b3995
        """
        multiplier, base = real("multiplier", multiplier, 0, 1000), real("base", base, 1, 1000)
        allowed_length = integer("allowed_length", allowed_length, 0)
        last_n = integer("penalty_last_n", penalty_last_n, -1, MAX_LAST_N)
        if last_n < 0:
            last_n = min(self.model.n_ctx_train, MAX_LAST_N)
        breakers = self._breakers(seq_breakers)
        library = self.model.library
        self._require("dry")
        numbers = multiplier, base, allowed_length, last_n
        self._add(compat.sampler_dry(library, self.model.ptr, *numbers, breakers))
        self._preselection.lowers(last_n)
        return self

    def add_logit_bias(self, bias: Mapping[int, float]) -> Self:
        """Add to the logits of tokens; -inf forbids one.

        Args:
            bias: From token to what is added, -10^6 to 10^6.
        C: llama_sampler_init_logit_bias
        """
        ffi, vocab = self.model.library.ffi, self.model.vocab
        pairs = {vocab.check(token): _bias(token, value) for token, value in bias.items()}
        array = ffi.new("llama_logit_bias[]", list(pairs.items()))
        self._add(self._new("logit_bias", vocab.n_tokens, len(pairs), array))
        self._preselection.biases(pairs)
        self._in_c &= -math.inf not in pairs.values()
        return self

    def add_infill(self) -> Self:
        """Prefer whole words and the end, for text between a prefix and a suffix.

        It compares all candidates in pairs: a top-k of at most 1,024 must come before it.
        C: llama_sampler_init_infill, since b3995
        """
        if self._preselection.n_left > _MAX_INFILL:
            raise ValidationError(
                f"infill compares {self._preselection.n_left} candidates in pairs; "
                f"add_top_k(40) before it, {_MAX_INFILL} at most"
            )
        self._require("infill")
        model = self.model
        vocab, ffi, lib = model.vocab, model.library.ffi, model.library.lib
        if vocab.eos is None and vocab.eot is None:
            raise ValidationError("infill needs an end-of-text token; this vocabulary has none")
        vocab.token_to_piece(0)  # raises where tokens have no text
        handle = compat.vocab_of(model.library, model.ptr)
        buffer = ffi.new("char[]", _PIECE_BYTES)
        for token in range(vocab.n_tokens):
            if lib.llama_token_to_piece(handle, token, buffer, _PIECE_BYTES, 0, False) < 0:
                raise ValidationError(f"token {token} is longer than infill's {_PIECE_BYTES} bytes")
        return self._add_changing("infill", handle)

    def _breakers(self, texts: Sequence[str]) -> list[bytes]:
        if isinstance(texts, str):
            raise ValidationError(f"seq_breakers={texts!r} is one text; give a sequence of them")
        if len(texts) > _MAX_BREAKERS:
            raise ValidationError(f"{len(texts)} seq_breakers; at most {_MAX_BREAKERS}")
        for text in texts:
            good = isinstance(text, str) and text.isascii() and "\0" not in text
            if not good or not 1 <= len(text) <= _MAX_BREAKER_BYTES:
                raise ValidationError(
                    f"seq_breakers: {text!r} is no ASCII text of 1 to {_MAX_BREAKER_BYTES} bytes"
                )
            self.model.vocab.tokenize(text, add_special=False)  # raises where C would abort
        return [text.encode() for text in texts]

    def _add_changing(self, kind: str, *args: Any, selects: bool = False) -> Self:
        self._add(self._new(kind, *args), selects=selects)
        self._preselection.changes()
        return self

    def _new(self, kind: str, *args: Any) -> Any:
        self._require(kind)
        return getattr(self.model.library.lib, f"llama_sampler_init_{kind}")(*args)

    def _require(self, kind: str) -> None:
        library = self.model.library
        if not library.has(f"llama_sampler_init_{kind}"):
            build = library.build.tag or library.path.name
            raise ValidationError(
                f"the loaded build ({build}) has no sampler {kind}; a newer one may: "
                "LLAMA_CFFI_BUILD=latest, or llama-cffi libs fetch latest"
            )

    def _add(self, sampler: Any, *, selects: bool = False) -> None:
        raise NotImplementedError


def _seed(seed: int | None) -> int:
    seed = -1 if seed is None else integer("seed", seed, -1, _ANY_SEED)
    return _ANY_SEED if seed == -1 else seed


def _min_keep(min_keep: int) -> int:
    # Old builds underflow at 0 or keep nothing; 1 means the same.
    return max(1, integer("min_keep", min_keep, 0))


def _temperature(temperature: float) -> float:
    return real("temperature", temperature, MIN_TEMPERATURE, _MAX_FLOAT)


def _bias(token: int, value: float) -> float:
    if value == -math.inf:
        return -math.inf
    return real(f"the bias of token {token}", value, -MAX_BIAS, MAX_BIAS)
