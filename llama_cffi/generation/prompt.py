"""Prompts: token ids, with images and audio among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol, SupportsIndex

from ..chat.media_parts import MARKER
from ..errors import ValidationError
from ..validation import shown

if TYPE_CHECKING:
    from ..binding import Context, Vocab

__all__ = [
    "Media",
    "MediaSpan",
    "Prompt",
    "SavedMedia",
    "common_prefix_length",
    "media_cells",
    "prompt_text",
    "tokenize_prompt",
]

_STRIDE = 64
_OFFSET_BITS = (
    22  # of a media cell: its offset within the media; the bits above identify the content
)
_CONTENT_BYTES = 5
_PACKED = 4  # numbers of a packed media


class Media(Protocol):
    """An encoded image or audio clip that can be decoded into a context.

    Attributes:
        key: Hash of the content and its encoding, at least 5 bytes.
        n_cells: Number of KV-cache cells.
        n_positions: Number of positions; fewer than the cells under M-RoPE.
        last_offset: The largest position that the KV cache has of it, less the first.
    """

    key: bytes
    n_cells: int
    n_positions: int
    last_offset: int

    @property
    def is_encoded(self) -> bool:
        """Whether `decode` need not encode it first."""
        ...

    def encode(self) -> object:
        """Compute its embeddings, unless they are known."""

    def decode(self, context: Context, seq_id: int, position: int) -> None:
        """Decode the media at *position* of a sequence."""


class SavedMedia:
    """A picture or sound in a saved KV cache. Its content is gone; see `Media`.

    Prompts with the same content have the same cells, so they continue from it.
    """

    __slots__ = ("key", "last_offset", "n_cells", "n_positions")

    def __init__(self, key: bytes, n_cells: int, n_positions: int, last_offset: int) -> None:
        self.key, self.n_cells = key, n_cells
        self.n_positions, self.last_offset = n_positions, last_offset

    @property
    def is_encoded(self) -> bool:
        """Whether `decode` need not encode it first."""
        return False

    def encode(self) -> NoReturn:
        """Refuse.

        Raises:
            ValidationError: Always.
        """
        raise ValidationError(
            f"the KV cache has lost a picture or sound of {self.n_cells} cells, which was loaded "
            "from a saved state and cannot be computed again from that; start anew, with the "
            "picture or sound itself"
        )

    def decode(self, context: Context, seq_id: int, position: int) -> NoReturn:
        """Refuse; see `encode`."""
        self.encode()

    def __repr__(self) -> str:
        return f"<SavedMedia of {self.n_cells} cells>"


class MediaSpan(NamedTuple):
    """An image or clip in a prompt: cells *start* to *end* - 1."""

    start: int
    end: int
    media: Media


class Prompt(list[int]):
    """The KV-cache cells of a prompt: token ids, and media between them.

    A media cell is a negative number made of the hash of the content and the offset within it. So
    prompts with the same image have equal cells, and prefixes, cache keys and lengths follow the
    same rules as for text. A prompt of text is simply the list of its tokens.

    Args:
        cells: Token ids and media cells.
        media: The media, by the content number in their cells.
    """

    __slots__ = ("_n_scanned", "_spans", "media")

    def __init__(self, cells: Iterable[int] = (), media: Mapping[int, Media] | None = None) -> None:
        super().__init__(cells)
        known: Mapping[int, Media] = cells.media if isinstance(cells, Prompt) else {}
        self.media: dict[int, Media] = dict(known if media is None else media)
        # The complete media among the first cells. Appending does not change them.
        self._spans: list[MediaSpan] = []
        self._n_scanned = 0

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        super().__delitem__(index)
        self._forget_spans()

    def clear(self) -> None:
        """Remove all cells."""
        super().clear()
        self._forget_spans()

    def add_media(self, media: Media) -> None:
        """Append an image or clip."""
        self.media[_content_number(media)] = media
        self += media_cells(media)

    def add(self, other: Sequence[int]) -> None:
        """Append another prompt, or token ids."""
        self += other
        if isinstance(other, Prompt) and other.media:
            self.media.update(other.media)

    def part(self, start: int, end: int | None = None) -> Prompt:
        """Return cells *start* to *end* - 1 with their media."""
        return Prompt(self[start:end], self.media)

    def without(self, start: int, end: int) -> Prompt:
        """Return the prompt without cells *start* to *end* - 1 and the media that these split."""
        head, tail = self.boundary(start), end
        while tail < len(self) and self.boundary(tail) != tail:
            tail += 1
        return Prompt(self[:head] + self[tail:], self.media)

    def packed(self) -> list[int]:
        """Return the prompt as numbers for the header of a saved state.

        Tokens are their ids. A picture or sound is four negative numbers: -1 less its cells,
        positions, last offset, and the number that identifies its content.

        Raises:
            ValidationError: A part of a picture or sound is missing.
        """
        found: list[int] = []
        done = 0
        for start, end, media in self.spans():
            found += self[done:start]
            numbers = media.n_cells, media.n_positions, media.last_offset, _content_number(media)
            found += [-1 - number for number in numbers]
            done = end
        found += self[done:]
        if len(found) - sum(token >= 0 for token in found) != _PACKED * len(self.spans()):
            raise ValidationError("the prompt has a part of a picture or sound; keep all or none")
        return found

    @classmethod
    def unpacked(cls, numbers: Sequence[int]) -> Prompt:
        """Return the prompt of `packed`; its pictures and sounds are `SavedMedia`.

        Raises:
            ValidationError: The numbers are damaged.
        """
        prompt, start = cls(), 0
        while (at := next((i for i in range(start, len(numbers)) if numbers[i] < 0), -1)) >= 0:
            prompt += numbers[start:at]
            start = at + _PACKED
            prompt.add_media(_unpacked_media([-1 - number for number in numbers[at:start]]))
        prompt += numbers[start:]
        return prompt

    def spans(self) -> Sequence[MediaSpan]:
        """Return the complete media and their cells, in order."""
        if not self.media:
            return ()
        i, n = self._n_scanned, len(self)
        while i < n:
            cell = self[i]
            if cell >= 0:
                i += 1
                continue
            media = self.media.get((-1 - cell) >> _OFFSET_BITS)
            if media is None:  # it was cut
                i += 1
                continue
            end = i + media.n_cells
            if end > n:
                break
            if self[i:end] == media_cells(media):
                self._spans.append(MediaSpan(i, end, media))
                i = end
            else:
                i += 1
        self._n_scanned = i
        return self._spans

    def boundary(self, index: int) -> int:
        """Return *index*, or the start of the media around it."""
        if not self.media or index >= len(self) or self[index] >= 0:
            return index
        return index - ((-1 - self[index]) & ((1 << _OFFSET_BITS) - 1))

    def run(self, start: int, end: int) -> Prompt:
        """Return the cells from *start* that one call decodes: text, up to *end*, or one media."""
        for span in self.spans():
            if span.start == start:
                return self.part(start, span.end)
            if start < span.start < end:
                return self.part(start, span.start)
        return self.part(start, end)

    def position(self, index: int) -> int:
        """Return the position of the cell at *index*; of the length: the position after the last.

        Under M-RoPE the cells of an image share positions.
        """
        if not self.media:
            return index
        shared = [s.media.n_cells - s.media.n_positions for s in self.spans() if s.end <= index]
        return index - sum(shared)

    def last_position(self, index: int) -> int:
        """Return the largest position that a KV cache has of the cells before *index*; -1: none.

        Under M-RoPE that can be less than the one before `position`.
        """
        for span in self.spans():
            if span.end == index:
                return self.position(span.start) + span.media.last_offset
        return self.position(index) - 1

    def _forget_spans(self) -> None:
        """Forget the media that are cut off, which would keep their pixels."""
        n, n_spans = len(self), len(self._spans)
        scanned = min(self._n_scanned, n)
        while self._spans and self._spans[-1].end > n:
            scanned = min(scanned, self._spans.pop().start)
        self._n_scanned = scanned
        if self.media and (len(self._spans) < n_spans or not n):
            self.media = {_content_number(s.media): s.media for s in self.spans()}

    def __repr__(self) -> str:
        return f"<Prompt of {len(self)} cells, {len(self.media)} media>"


def media_cells(media: Media) -> list[int]:
    """Return the cells of *media*, which are equal only for equal content."""
    base = _content_number(media) << _OFFSET_BITS
    return [-1 - (base | offset) for offset in range(media.n_cells)]


def _content_number(media: Media) -> int:
    return int.from_bytes(media.key[:_CONTENT_BYTES], "big")


def _unpacked_media(numbers: Sequence[int]) -> SavedMedia:
    if len(numbers) == _PACKED:
        n_cells, n_positions, last_offset, content = numbers
        if (
            0 < n_cells < 1 << _OFFSET_BITS
            and 0 < n_positions <= n_cells
            and 0 <= last_offset < n_cells
            and 0 <= content < 1 << 8 * _CONTENT_BYTES
        ):
            key = content.to_bytes(_CONTENT_BYTES, "big")
            return SavedMedia(key, n_cells, n_positions, last_offset)
    raise ValidationError(f"a saved prompt has a damaged picture or sound: {[*numbers]}")


def block_hashes(
    tokens: Sequence[int], size: int, before: int, start: int = 0, end: int | None = None
) -> Iterator[int]:
    """Yield a hash for each whole block of a prompt, of its tokens and all before them.

    Args:
        tokens: The prompt.
        size: Tokens of a block.
        before: The hash of what comes before *start*.
        start: The first token.
        end: The token after the last; None: the end of the prompt.
    """
    end = len(tokens) if end is None else end
    for at in range(start, end - size + 1, size):
        before = hash((before, tuple(tokens[at : at + size])))
        yield before


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix of two prompts, in cells."""
    most = min(len(a), len(b))
    n = 0
    # Short slices, because lists are compared in C.
    while n < most and [*a[n : n + _STRIDE]] == [*b[n : n + _STRIDE]]:
        n += _STRIDE
    while n < most and a[n] == b[n]:
        n += 1
    return min(n, most)


def check_prompt(prompt: object) -> None:
    """Refuse what is neither text nor token ids.

    Raises:
        ValidationError: It is something else, such as messages or several texts, or ends with a
            picture or sound.
    """
    if isinstance(prompt, str):
        return
    if isinstance(prompt, Prompt) and prompt and prompt[-1] < 0:
        raise ValidationError(
            "a prompt cannot end with a picture or sound; write text after it, such as a question"
        )
    if isinstance(prompt, Iterable) and not isinstance(prompt, (bytes, bytearray, Mapping)):
        first = prompt[0] if isinstance(prompt, Sequence) and prompt else 0
        if isinstance(first, Mapping):
            raise ValidationError(
                "the prompt is a list of messages; a chat is create_chat_completion(messages)"
            )
        if not isinstance(first, str):
            return
    raise ValidationError(f"prompt must be a str or a list of token ids, got {shown(prompt)}")


def prompt_text(vocab: Vocab, prompt: Sequence[int]) -> str:
    """Return the text of a prompt, with `MARKER` for each picture or sound."""
    if not isinstance(prompt, Prompt) or not prompt.media:
        return vocab.detokenize(prompt, True)
    texts, start = [], 0
    for span in prompt.spans():
        texts.append(vocab.detokenize(prompt[start : span.start], True, keep_space=start > 0))
        start = span.end
    texts.append(vocab.detokenize(prompt[start:], True, keep_space=start > 0))
    return MARKER.join(texts)


def tokenize_prompt(vocab: Vocab, text: str) -> list[int]:
    """Return the tokens of a rendered prompt; the text of special tokens is parsed.

    BOS is added only if the prompt does not begin with it, because two degrade the answer.

    Raises:
        ValidationError: The text is not valid UTF-8.
    """
    tokens = vocab.tokenize(text, True, True)
    return tokens[1:] if tokens[:2] == [vocab.bos] * 2 else tokens
