"""Progress of long calls: a bar on stderr, a function of the caller, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import ValidationError

__all__ = ["Progress", "reporting"]

Progress = bool | Callable[[float], bool | None] | None


@contextmanager
def reporting(progress: Progress, label: str) -> Iterator[Callable[[float], bool]]:
    """Yield a function that takes 0.0 to 1.0 and returns False if the caller wants to stop.

    Args:
        progress: True shows a bar on stderr; a function is called, and returns False to stop.
        label: Label of the bar.

    Raises:
        ValidationError: *progress* is neither a bool nor a function nor None.
    """
    if progress is None or progress is False:
        yield lambda done: True
    elif progress is True:
        from tqdm import tqdm

        layout = "{l_bar}{bar}| {elapsed}<{remaining}"
        with tqdm(total=1.0, desc=label, bar_format=layout) as bar:

            def advance(done: float) -> bool:
                bar.update(done - bar.n)
                return True

            yield advance
    elif callable(progress):
        yield lambda done: progress(done) is not False
    else:
        raise ValidationError(f"progress={progress!r} must be a bool or a function")
