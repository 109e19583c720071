"""What a model is given: tokens, and later pictures and sound among them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, overload

from ..errors import ValidationError

if TYPE_CHECKING:
    from ..binding import Vocab

__all__ = ["Media", "MediaSpan", "Prompt", "common_prefix_length", "media_cells", "tokenize_prompt"]

_STRIDE = 64
_HASH_BITS = 40  # of a content hash in the id of a cell; the offset takes the bits below
_OFFSET_BITS = 22


class Media(Protocol):
    """An encoded picture or clip, ready to be decoded.

    Attributes:
        key: The hash of its content, and of how it was encoded: at least 8 bytes.
        n_cells: Cells of the KV cache that it takes.
        n_positions: Positions that it advances; fewer than its cells under M-RoPE.
    """

    key: bytes
    n_cells: int
    n_positions: int


@dataclass(frozen=True)
class MediaSpan:
    """Where a picture or clip stands in a prompt.

    Attributes:
        start: Index of its first cell.
        media: The content.
    """

    start: int
    media: Media

    @property
    def end(self) -> int:
        """Index after its last cell."""
        return self.start + self.media.n_cells


class Prompt(Sequence[int]):
    """Cells of the KV cache that a prompt fills, in order.

    A cell is a token id, or a negative number that stands for a part of a picture: its content's
    hash and its offset, so two prompts with the same picture have the same cells. A prompt of
    tokens alone behaves as the list of them.

    Args:
        cells: The cells.
        spans: The pictures and clips among them, in order.

    Raises:
        ValidationError: Spans overlap or lie outside of the cells.
    """

    __slots__ = ("cells", "spans")

    def __init__(self, cells: Iterable[int], spans: Iterable[MediaSpan] = ()) -> None:
        self.cells = [*cells]
        self.spans = tuple(spans)
        end = 0
        for span in self.spans:
            if span.start < end or span.end > len(self.cells):
                raise ValidationError(
                    f"a media span of {span.media.n_cells} cells at {span.start} does not fit into "
                    f"{len(self.cells)} cells behind {end}"
                )
            end = span.end

    def __len__(self) -> int:
        return len(self.cells)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> Prompt: ...

    def __getitem__(self, index: int | slice) -> int | Prompt:
        if isinstance(index, int):
            return self.cells[index]
        start, stop, step = index.indices(len(self.cells))
        if not self.spans:
            return Prompt(self.cells[index])
        if step != 1:
            raise ValidationError("a prompt with media has no slices with a step")
        start, stop = self.boundary(start), self.boundary(stop)
        spans = (
            MediaSpan(span.start - start, span.media)
            for span in self.spans
            if start <= span.start and span.end <= stop
        )
        return Prompt(self.cells[start:stop], spans)

    def __add__(self, other: Sequence[int]) -> Prompt:
        spans = other.spans if isinstance(other, Prompt) else ()
        shifted = (MediaSpan(span.start + len(self), span.media) for span in spans)
        return Prompt([*self.cells, *other], (*self.spans, *shifted))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Prompt):
            return self.cells == other.cells
        return self.cells == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Prompt of {len(self.cells)} cells, {len(self.spans)} media>"

    def boundary(self, index: int) -> int:
        """Return *index*, or the start of the media that it lies within."""
        i = bisect_right(self.spans, index, key=lambda span: span.start) - 1
        if i >= 0 and self.spans[i].start < index < self.spans[i].end:
            return self.spans[i].start
        return index

    def position(self, index: int) -> int:
        """Return the position of a cell, or of what follows the last one.

        Under M-RoPE the cells of a picture share positions, and what follows it continues after
        its `n_positions`.
        """
        shift = 0
        for span in self.spans:
            if span.end > index:
                break
            shift += span.media.n_cells - span.media.n_positions
        return index - shift


def media_cells(media: Media) -> list[int]:
    """Return the cells that stand for *media*: negative, and equal only for equal content."""
    high = int.from_bytes(media.key[:8], "big") >> (64 - _HASH_BITS)
    base = high << _OFFSET_BITS
    return [-1 - (base | offset) for offset in range(media.n_cells)]


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many cells two prompts have in common at their beginning."""
    a = a.cells if isinstance(a, Prompt) else a
    b = b.cells if isinstance(b, Prompt) else b
    most = min(len(a), len(b))
    n = 0
    # Lists and tuples of small parts are compared in C.
    while n < most and [*a[n : n + _STRIDE]] == [*b[n : n + _STRIDE]]:
        n += _STRIDE
    while n < most and a[n] == b[n]:
        n += 1
    return min(n, most)


def tokenize_prompt(vocab: Vocab, text: str) -> list[int]:
    """Return the tokens of a finished prompt, in which special tokens are spelled out.

    A prompt that a template made begins with BOS already, and models suffer from two of them.

    Raises:
        ValidationError: The text is not valid.
    """
    tokens = vocab.tokenize(text, True, True)
    return tokens[1:] if tokens[:2] == [vocab.bos] * 2 else tokens
