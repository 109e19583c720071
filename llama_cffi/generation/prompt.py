"""What a model is given: tokens, and later pictures and sound among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from ..binding import Context, Vocab

__all__ = ["Media", "MediaSpan", "Prompt", "common_prefix_length", "media_cells", "tokenize_prompt"]

_STRIDE = 64
_OFFSET_BITS = 22  # of a media cell: its place within the media; the bits above are the content's
_CONTENT_BYTES = 5


class Media(Protocol):
    """A picture or clip that is encoded and can be decoded into a context.

    Attributes:
        key: Hash of its content and of how it was encoded, at least 5 bytes.
        n_cells: Cells of the KV cache that it takes.
        n_positions: Positions that it advances: fewer than its cells under M-RoPE.
    """

    key: bytes
    n_cells: int
    n_positions: int

    def decode(self, context: Context, seq_id: int, position: int) -> None:
        """Decode it at *position* of a sequence."""


class MediaSpan(NamedTuple):
    """Where a picture or clip lies in a prompt: cells *start* to *end* - 1."""

    start: int
    end: int
    media: Media


class Prompt(list[int]):
    """The cells of the KV cache that a prompt fills: token ids, and media between them.

    A cell of a picture is a negative number made of the hash of its content and the offset within
    it. So prompts with the same picture have equal cells, and prefixes, cache keys and lengths need
    no other rule than for text. A prompt of text is simply the list of its tokens.

    Args:
        cells: Token ids and media cells.
        media: The content of the media cells, by the number in their cells.
    """

    __slots__ = ("media",)

    def __init__(self, cells: Iterable[int] = (), media: Mapping[int, Media] | None = None) -> None:
        super().__init__(cells)
        known: Mapping[int, Media] = cells.media if isinstance(cells, Prompt) else {}
        self.media: dict[int, Media] = dict(known if media is None else media)

    def add_media(self, media: Media) -> None:
        """Append a picture or clip."""
        self.media[_content(media)] = media
        self += media_cells(media)

    def add(self, other: Sequence[int]) -> None:
        """Append another prompt, or tokens."""
        self += other
        if isinstance(other, Prompt) and other.media:
            self.media.update(other.media)

    def part(self, start: int, end: int | None = None) -> Prompt:
        """Return cells *start* to *end* - 1 with their media."""
        return Prompt(self[start:end], self.media)

    def without(self, start: int, end: int) -> Prompt:
        """Return the prompt without cells *start* to *end* - 1, and without media that they cut."""
        head, tail = self.boundary(start), end
        while tail < len(self) and self.boundary(tail) != tail:
            tail += 1
        return Prompt(self[:head] + self[tail:], self.media)

    def spans(self) -> Iterator[MediaSpan]:
        """Return where the media lie, in order; parts of media are left out."""
        i = 0 if self.media else len(self)
        while i < len(self):
            cell = self[i]
            if cell >= 0:
                i += 1
                continue
            media = self.media[(-1 - cell) >> _OFFSET_BITS]
            end = i + media.n_cells
            if self[i:end] == media_cells(media):
                yield MediaSpan(i, end, media)
                i = end
            else:
                i += 1

    def boundary(self, index: int) -> int:
        """Return *index*, or the start of the media that it lies within."""
        if not self.media or index >= len(self) or self[index] >= 0:
            return index
        return index - ((-1 - self[index]) & ((1 << _OFFSET_BITS) - 1))

    def position(self, index: int) -> int:
        """Return the position of a cell, or with the length of the prompt the one after the last.

        Under M-RoPE the cells of a picture share positions.
        """
        if not self.media:
            return index
        return index - sum(
            span.media.n_cells - span.media.n_positions
            for span in self.spans()
            if span.end <= index
        )

    def __repr__(self) -> str:
        return f"<Prompt of {len(self)} cells, {len(self.media)} media>"


def media_cells(media: Media) -> list[int]:
    """Return the cells that stand for *media*; equal for equal content only."""
    base = _content(media) << _OFFSET_BITS
    return [-1 - (base | offset) for offset in range(media.n_cells)]


def _content(media: Media) -> int:
    return int.from_bytes(media.key[:_CONTENT_BYTES], "big")


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many cells two prompts have in common at their beginning."""
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
