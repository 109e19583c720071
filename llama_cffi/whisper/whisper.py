"""The model that transcribes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..binding.whisper.library import WhisperLibrary, get_whisper_library
from ..binding.whisper.model import RawSegment, RunOptions, WhisperModel
from ..errors import ValidationError
from ..progress import Progress, reporting
from ..validation import (
    as_path,
    check_bool,
    check_callable,
    check_choice,
    check_float,
    check_int,
    check_str,
    checked_arguments,
    not_picklable,
)
from .sound import POLICY, SAMPLE_RATE, load_samples
from .transcript import Segment, Token, Transcript

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..media import MediaPolicy
    from ..media.sounds import AudioSource

__all__ = ["Whisper"]

_AUTO = "auto"
_MAX_BEAMS = 8  # WHISPER_MAX_DECODERS
# C splits a prompt with std::regex, which recurses; of longer ones the model sees the end only.
_MAX_PROMPT_BYTES = 2000
_MAX_DEADLINE_S = 1e6


class Whisper:
    """A speech model of whisper.cpp.

    Several threads may transcribe at once; they share the weights, and each takes memory of its
    own for as long as it runs.

    Args:
        path: A model file in whisper.cpp's format, such as `ggml-base.bin`.
        library: The libwhisper to load; None: `LLAMA_CFFI_WHISPER_LIB`, else the one in the
            installed package pywhispercpp. One per process.
        n_threads: Threads; None: `LLAMA_CFFI_N_THREADS`, else the physical cores.
        use_gpu: Whether a GPU computes, if the build supports it.
        flash_attn: Whether to use flash attention: faster on GPUs, and not exact in whisper.cpp.

    Attributes:
        library: The loaded libwhisper; `print(whisper.library.abi)` shows how it was identified.
        model: The C object, and in `model.file` its hyperparameters.
        languages: Codes of the languages that the model knows.

    Raises:
        ModelLoadError: The model is missing, damaged, or refused by C.
        LibraryNotFoundError: There is no libwhisper.
        LibraryLoadError: It cannot be loaded, or another one is loaded already.
        AbiMismatchError: No declarations are proven to fit it.
        ValidationError: An argument is of the wrong type or out of range.
        OutOfMemoryError: The limit of this process leaves too little memory.
    C: whisper_init_from_file_with_params_no_state
    """

    @checked_arguments()
    def __init__(
        self,
        path: str | os.PathLike[str],
        library: str | os.PathLike[str] | None = None,
        n_threads: int | None = None,
        *,
        use_gpu: bool = True,
        flash_attn: bool = False,
    ) -> None:
        file = as_path("path", path)
        threads = 0 if n_threads is None else check_int("n_threads", n_threads, 1)
        use_gpu = check_bool("use_gpu", use_gpu)
        flash_attn = check_bool("flash_attn", flash_attn)
        self.library: WhisperLibrary = get_whisper_library(library)
        self.model = WhisperModel(
            file, self.library, n_threads=threads, use_gpu=use_gpu, flash_attn=flash_attn
        )
        known = self.library.languages[: self.model.file.n_languages]
        self.languages: tuple[str, ...] = known

    @checked_arguments()
    def transcribe(
        self,
        audio: AudioSource,
        *,
        sample_rate: int = SAMPLE_RATE,
        language: str | None = None,
        translate: bool = False,
        prompt: str | None = None,
        timestamps: bool = True,
        temperature: float = 0.0,
        temperature_inc: float = 0.2,
        beam_size: int | None = None,
        deadline_s: float | None = None,
        policy: MediaPolicy | None = None,
        on_segment: Callable[[Segment], object] | None = None,
        progress: Progress = None,
    ) -> Transcript:
        """Write down what is said.

        Ctrl-C, `cancel`, `close` and the deadline end it after the graph that C computes: one
        token, or the encoder's work on 30 s of audio.

        Args:
            audio: A WAV file as path, bytes, binary file, data: or https: URL; an `Audio`; or
                samples: (n,) float32 between -1 and 1, mono. From 0.1 s to 4 h; resampled to
                16 kHz.
            sample_rate: Samples per second of an array, in Hz; a file has its own.
            language: Code of the language, such as `en`; None: detected in the first 30 s.
            translate: Write English, whatever is spoken.
            prompt: Text that precedes what is spoken, such as names and their spelling; at most
                2,000 bytes.
            timestamps: Let the model tell when a segment begins and ends; without timestamps
                there is one segment for each 30 s.
            temperature: Of the first attempt, 0 to 1; 0 takes the most probable token.
            temperature_inc: Added for each further attempt on audio that does not decode well; 0:
                there is only one attempt.
            beam_size: Beams, 1 to 8; None: none, the most probable token is taken.
            deadline_s: Seconds that it may take; None: as long as it needs.
            policy: Where audio may be loaded from, and its limits; None: files and public https
                hosts, 1 GiB, 4 h.
            on_segment: Called with each segment as soon as it is done, in this thread.
            progress: True for a bar on stderr, or a function that takes 0.0 to 1.0 and may return
                False to stop.

        Returns:
            The segments and the language. The same audio gives the same transcript.

        Raises:
            ValidationError: An argument is of the wrong type or out of range, the audio cannot be
                read or is not allowed, or the model does not know the language.
            FetchError: An address cannot be fetched.
            CancelledError: By `cancel`, `close`, or *progress*; `text` has what was done.
            DeadlineExceededError: The deadline passed; `text` has what was done.
            GenerationError: C failed.
            OutOfMemoryError: The limit of this process leaves too little memory.
            ClosedError: The model is closed.
            LlamaError: The threads cannot be started.
        C: whisper_full_with_state
        """
        samples = load_samples(audio, sample_rate, policy or POLICY)
        duration_s = len(samples) / SAMPLE_RATE
        options = RunOptions(
            language=self._language(language, check_bool("translate", translate)),
            translate=bool(translate),
            timestamps=check_bool("timestamps", timestamps),
            prompt=_prompt(prompt),
            temperature=check_float("temperature", temperature, 0, 1),
            temperature_inc=check_float("temperature_inc", temperature_inc, 0, 1),
            beam_size=0 if beam_size is None else check_int("beam_size", beam_size, 1, _MAX_BEAMS),
            n_threads=self.model.n_threads,
            deadline_s=None
            if deadline_s is None
            else check_float("deadline_s", deadline_s, 0, _MAX_DEADLINE_S),
        )
        check_callable("on_segment", on_segment)

        def deliver(raw: RawSegment) -> None:
            assert on_segment is not None
            on_segment(_segment(raw, duration_s))

        with (
            reporting(progress, "transcribing") as advance,
            self.model.new_state() as state,
        ):
            raw, found = state.run(
                samples,
                options,
                on_segment=None if on_segment is None else deliver,
                on_progress=None if progress in (None, False) else advance,
            )
        return Transcript(tuple(_segment(r, duration_s) for r in raw), found, duration_s)

    def cancel(self) -> None:
        """End the running transcriptions, from any thread; each raises CancelledError."""
        self.model.cancel()

    def close(self) -> None:
        """Free the model; running transcriptions end first. A second call does nothing."""
        self.model.close()

    def _language(self, language: str | None, translate: bool) -> str:
        multilingual = self.model.file.is_multilingual
        if translate and not multilingual:
            raise ValidationError(
                f"{self.model.file.path.name} knows English only and cannot translate; use a "
                "multilingual model (without .en in its name)"
            )
        if language is None or language == _AUTO:
            return _AUTO if multilingual else "en"
        code = check_str("language", language).lower()
        return check_choice("language", code, self.languages)

    __reduce__ = not_picklable("pass the model's path to the other process and open it there")

    def __enter__(self) -> Self:
        self.model.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        file = self.model.file
        state = " closed" if self.model.closed else ""
        return f"<Whisper {file.path.name} {file.type_name} whisper.cpp {self.library.name}{state}>"


def _prompt(prompt: str | None) -> bytes:
    encoded = check_str("prompt", prompt or "").encode("utf-8", "replace")
    if b"\0" in encoded or len(encoded) > _MAX_PROMPT_BYTES:
        raise ValidationError(
            f"prompt must have at most {_MAX_PROMPT_BYTES} bytes and no NUL, got {len(encoded)} "
            "bytes; the model sees its last 224 tokens only"
        )
    return encoded


def _segment(raw: RawSegment, duration_s: float) -> Segment:
    """Return a segment with times inside the audio, which the model does not always keep to."""
    start_s = min(max(raw.t0 / 100, 0.0), duration_s)
    end_s = min(max(raw.t1 / 100, start_s), duration_s)
    tokens = tuple(
        Token(t.id, t.text.decode("utf-8", "replace"), t.probability) for t in raw.tokens
    )
    return Segment(start_s, end_s, raw.text.decode("utf-8", "replace"), tokens)
