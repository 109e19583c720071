"""What a chain needs of grammars and masks, which decide the tokens that may come next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..model.model import Model
from .candidates import Candidates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TokenConstraint", "TokenMask"]


class TokenConstraint(Protocol):
    """Decides which tokens may come next, such as a `Grammar`."""

    @property
    def model(self) -> Model:
        """The model whose tokens it is about."""
        ...

    def allows(self, token: int) -> bool:
        """Whether *token* may come next; changes nothing."""
        ...

    def apply(self, candidates: Candidates) -> None:
        """Drop or forbid every candidate that may not come next."""
        ...

    def accept(self, token: int) -> None:
        """Continue with *token*."""
        ...

    def reset(self) -> None:
        """Start over."""
        ...


class TokenMask(Protocol):
    """Decides which tokens may come next, before one is chosen."""

    @property
    def model(self) -> Model:
        """The model whose tokens it is about."""
        ...

    def allowed(self) -> NDArray[np.bool_] | None:
        """Return whether each token may come next, shape (n_vocab,), bool; None = all may."""
        ...

    def rejects(self, token: int) -> bool:
        """Whether *token*, which was chosen, may not come next after all.

        Then `allowed` leaves it out, and another one is chosen.
        """
        ...

    def accept(self, token: int) -> None:
        """Continue with *token*."""
        ...

    def reset(self) -> None:
        """Start over."""
        ...
