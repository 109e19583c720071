"""Links: what a chain knows about each of its samplers, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import ValidationError
from .custom_sampler import CustomSampler
from .topk_preselect import Preselection

__all__ = ["Link", "Traits"]


@dataclass(frozen=True)
class Link:
    """What matters about one sampler, besides the C object.

    Attributes:
        note: Tells the preselection about it.
        selects: Whether it selects a token, or undoes a selection; None: neither.
        in_c: Whether C may sample by itself with it.
        max_candidates: Most candidates that it can take; None: any number.
        custom: Its Python functions, if it has them.
    """

    note: Callable[[Preselection], None] = Preselection.add_other
    selects: bool | None = False
    in_c: bool = True
    max_candidates: int | None = None
    custom: CustomSampler | None = None


class Traits:
    """What follows from the links of a whole chain.

    Args:
        n_vocab: Number of tokens.
        links: The samplers of the chain, in order.

    Attributes:
        preselection: Whether the chain needs the whole vocabulary.
        selects: Whether the chain selects a token at its end.
        in_c: Whether C may sample by itself.
        customs: The samplers written in Python.
        appliers: Those of them that work on candidates.

    Raises:
        ValidationError: A sampler would get too many candidates.
    """

    def __init__(self, n_vocab: int, links: Sequence[Link] = ()) -> None:
        self.preselection = Preselection(n_vocab)
        self.selects, self.in_c = False, True
        self.customs: list[CustomSampler] = []
        self.appliers: list[CustomSampler] = []
        for link in links:
            self.add(link)

    def add(self, link: Link) -> None:
        """Add the next sampler.

        Raises:
            ValidationError: It would get too many candidates; nothing has changed.
        """
        most, n = link.max_candidates, self.preselection.n_left
        if most is not None and n > most:
            raise ValidationError(
                f"infill compares {n} candidates in pairs; add_top_k(40) before it, {most} at most"
            )
        link.note(self.preselection)
        if link.selects is not None:
            self.selects = link.selects
        self.in_c &= link.in_c
        if link.custom is not None:
            self.customs.append(link.custom)
            if link.custom.changes:
                self.appliers.append(link.custom)
