"""The C objects of a transcription: a model, and a state for each run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import cdefs
from ...errors import (
    CancelledError,
    DeadlineExceededError,
    GenerationError,
    ModelLoadError,
)
from ..callbacks import ExceptionRelay
from ..memory_limits import check_bytes, check_threads
from ..native_object import NativeObject, in_call
from ..processors import thread_count
from .library import WhisperLibrary
from .model_file import WhisperFile, check_model_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..ffi_types import CData

__all__ = ["RawSegment", "RawToken", "RunOptions", "WhisperModel", "WhisperState"]

_GREEDY, _BEAM_SEARCH = 0, 1
_CANCEL, _CLOSE, _DEADLINE = "cancel", "close", "deadline"
_FREED_BY_C = -7  # whisper_full_with_state has freed the state
_FAILURES = {
    -2: "the spectrogram could not be computed",
    -3: "the language could not be detected",
    -4: "there are too many decoders",
    -5: "the model has fewer audio positions",
    -6: "the encoder failed",
    -7: "there is no memory for the KV cache",
    -8: "the decoder failed on the prompt",
    -9: "the decoder failed",
}
_LOAD_OVERHEAD = 2**26
_F32_SINCE = "v1.9.2"  # ggml_compute_forward_im2col asserts 16-bit kernels before


@dataclass(frozen=True)
class RawToken:
    """A token as C has it: its id, its bytes and its probability."""

    id: int
    text: bytes
    probability: float


@dataclass(frozen=True)
class RawSegment:
    """A segment as C has it; times in hundredths of a second."""

    t0: int
    t1: int
    text: bytes
    tokens: tuple[RawToken, ...]


@dataclass(frozen=True)
class RunOptions:
    """Options of one run, checked by the caller.

    Attributes:
        language: A code of `WhisperLibrary.languages`, or `auto`.
        translate: Write English, whatever is spoken.
        timestamps: Let the model write timestamps; without them there is one segment per 30 s.
        prompt: Text that precedes what is spoken; UTF-8.
        temperature: Of the first attempt; 0 takes the most probable token.
        temperature_inc: Added for each further attempt on audio that does not decode well; 0: one.
        beam_size: Beams, 1 to 8; 0: greedy.
        n_threads: Threads.
        deadline_s: Seconds from the start; None: no deadline.
    """

    language: str
    translate: bool
    timestamps: bool
    prompt: bytes
    temperature: float
    temperature_inc: float
    beam_size: int
    n_threads: int
    deadline_s: float | None


class WhisperModel(NativeObject):
    """A model, shared by all runs.

    Args:
        path: The model file, in whisper.cpp's format.
        library: The build.
        n_threads: Threads of a run; 0 as for `Context`.
        use_gpu: Whether a GPU that the build supports computes.
        flash_attn: Whether to use flash attention. whisper.cpp's is not exact: it also attends to
            the 36 unused positions of its cache of 1,536.

    Attributes:
        library: The build.
        file: The hyperparameters.
        n_threads: Threads of a run.

    Raises:
        ModelLoadError: The file is missing, damaged, or refused by C.
        ValidationError: `n_threads` is negative.
        OutOfMemoryError: The limit of this process leaves too little memory.
    C: whisper_init_from_file_with_params_no_state
    """

    def __init__(
        self,
        path: Path,
        library: WhisperLibrary,
        *,
        n_threads: int = 0,
        use_gpu: bool = True,
        flash_attn: bool = False,
    ) -> None:
        self.library = library
        self.n_threads = thread_count("n_threads", n_threads)
        self.file: WhisperFile = check_model_file(path)
        if self.file.type_name == "F32" and not _runs_f32(library):
            raise ModelLoadError(
                f"{path} has 32-bit weights, which whisper.cpp {library.name} cannot compute with; "
                f"use its 16-bit or quantized version, or a build of {_F32_SINCE} or later"
            )
        check_bytes(self.file.size_bytes + _LOAD_OVERHEAD, f"loading {path.name}")
        lib = library.lib
        params = lib.whisper_context_default_params()
        params.use_gpu = use_gpu
        params.flash_attn = flash_attn
        logged = library.logs.count
        with in_call():
            ptr = lib.whisper_init_from_file_with_params_no_state(os.fsencode(path), params)
        library.logs.raise_interrupt()
        if not ptr:
            reason = "; ".join(library.logs.since(logged)) or "no reason given"
            raise ModelLoadError(f"{path} cannot be loaded by whisper.cpp {library.name}: {reason}")
        super().__init__(ptr, lib.whisper_free)

    def new_state(self) -> WhisperState:
        """Return the memory for one run: caches and compute buffers.

        Raises:
            ClosedError: The model is closed.
            GenerationError: C could not allocate it.
        C: whisper_init_state
        """
        library, logged = self.library, self.library.logs.count
        held = self.hold()
        try:
            ptr = library.lib.whisper_init_state(self.ptr)
        finally:
            del held
        if not ptr:
            reason = "; ".join(library.logs.since(logged)) or "no reason given"
            raise GenerationError(f"whisper.cpp could not start a transcription: {reason}")
        return WhisperState(ptr, self)

    def cancel(self) -> None:
        """End the runs that are in C, each with a CancelledError; later ones are not affected."""
        for state in list(self._children):
            if isinstance(state, WhisperState):
                state.cancel()

    def close(self) -> None:
        """Free the model; a run in another thread ends with a CancelledError."""
        for state in list(self._children):
            if isinstance(state, WhisperState):
                state.cancel(_CLOSE)
        super().close()


class WhisperState(NativeObject):
    """The memory of one run.

    Args:
        ptr: The C object.
        model: Its model.
    """

    def __init__(self, ptr: CData, model: WhisperModel) -> None:
        self._model = model
        self._reason: str | None = None
        self._lock = threading.Lock()
        super().__init__(ptr, model.library.lib.whisper_free_state, parent=model)

    def cancel(self, reason: str = _CANCEL) -> None:
        """End the run at C's next look, after the graph that it computes."""
        with self._lock:
            self._reason = self._reason or reason

    def _stop(self) -> None:
        self.cancel(_CLOSE)

    def run(
        self,
        samples: NDArray[np.float32],
        options: RunOptions,
        *,
        on_segment: Callable[[RawSegment], object] | None = None,
        on_progress: Callable[[float], object] | None = None,
    ) -> tuple[list[RawSegment], str]:
        """Transcribe samples.

        Args:
            samples: (n,) float32, mono, 16 kHz, at least 1,600.
            options: Options.
            on_segment: Called with each segment when it is done.
            on_progress: Called with 0.0 to 1.0 after each window of at most 30 s.

        Returns:
            The segments, and the code of the language.

        Raises:
            CancelledError: By `cancel` or `close`.
            DeadlineExceededError: The deadline passed.
            GenerationError: C failed.
            OutOfMemoryError: The limit of this process leaves too little memory.
            LlamaError: The threads cannot be started.
        C: whisper_full_with_state
        """
        model, library = self._model, self._model.library
        ffi, lib = library.ffi, library.lib
        n_decoders = max(5, options.beam_size)  # C's `best_of` is 5
        check_bytes(model.file.state_bytes(len(samples), n_decoders), "the transcription")
        check_threads(options.n_threads - 1)
        relay = ExceptionRelay()
        deadline = None if options.deadline_s is None else time.monotonic() + options.deadline_s
        delivered = 0

        def stopped(_data: CData) -> bool:
            if self._reason is None and deadline is not None and time.monotonic() >= deadline:
                self._reason = _DEADLINE
            return self._reason is not None or relay.error is not None

        def segments_done(_ctx: CData, _state: CData, _n: int, _data: CData) -> None:
            nonlocal delivered
            assert on_segment is not None
            for i in range(delivered, lib.whisper_full_n_segments_from_state(_state)):
                delivered = i + 1
                on_segment(self._segment(_ctx, _state, i))

        def progressed(_ctx: CData, _state: CData, percent: int, _data: CData) -> None:
            assert on_progress is not None
            if on_progress(min(max(percent, 0), 100) / 100) is False:
                self.cancel()

        params = self._params(options)
        # Kept until C returns. The abort callback also gives Python a chance to raise Ctrl-C.
        kept: list[Any] = [
            ffi.new("char[]", options.language.encode()),
            ffi.new("char[]", options.prompt) if options.prompt else ffi.NULL,
            relay.guard(ffi, "ggml_abort_callback", stopped, True),
            ffi.from_buffer("float[]", samples),
        ]
        params.language, params.initial_prompt, params.abort_callback = kept[:3]
        if on_segment is not None:
            kept.append(relay.guard(ffi, "whisper_new_segment_callback", segments_done, None))
            params.new_segment_callback = kept[-1]
        if on_progress is not None:
            kept.append(relay.guard(ffi, "whisper_progress_callback", progressed, None))
            params.progress_callback = kept[-1]
        logged = library.logs.count
        held, held_model = self.hold(), model.hold()
        try:
            code = lib.whisper_full_with_state(model.ptr, self.ptr, params, kept[3], len(samples))
            if code == _FREED_BY_C:
                held.free = _nothing
            relay.check()
            library.logs.raise_interrupt()
            segments = [] if code == _FREED_BY_C else self._segments(held_model.ptr, held.ptr)
            text = b"".join(s.text for s in segments).decode("utf-8", "replace")
            self._raise_if_stopped(options, text)
            if code:
                why = "; ".join(library.logs.since(logged))
                raise GenerationError(
                    f"whisper.cpp {library.name} returned {code}: "
                    f"{_FAILURES.get(code, 'unknown failure')}{f' ({why})' if why else ''}"
                )
            language = library.languages[lib.whisper_full_lang_id_from_state(held.ptr)]
            return segments, language
        finally:
            del held, held_model

    def _params(self, options: RunOptions) -> CData:
        """Return C's default parameters with the options. C: whisper_full_default_params."""
        beams = options.beam_size
        params: CData = self._model.library.lib.whisper_full_default_params(
            _BEAM_SEARCH if beams else _GREEDY
        )
        params.print_progress = params.print_realtime = params.print_timestamps = False
        params.print_special = False
        params.n_threads = options.n_threads
        params.translate = options.translate
        params.no_timestamps = not options.timestamps
        params.temperature = options.temperature
        params.temperature_inc = options.temperature_inc
        if beams:
            params.beam_search.beam_size = beams
        return params

    def _segments(self, ctx: CData, state: CData) -> list[RawSegment]:
        count = self._model.library.lib.whisper_full_n_segments_from_state(state)
        return [self._segment(ctx, state, i) for i in range(count)]

    def _segment(self, ctx: CData, state: CData, i: int) -> RawSegment:
        """Copy a segment. C: whisper_full_get_segment_…, whisper_full_get_token_…."""
        ffi, lib = self._model.library.ffi, self._model.library.lib
        tokens = []
        for j in range(lib.whisper_full_n_tokens_from_state(state, i)):
            text = lib.whisper_full_get_token_text_from_state(ctx, state, i, j)
            tokens.append(
                RawToken(
                    lib.whisper_full_get_token_id_from_state(state, i, j),
                    bytes(ffi.string(text)),
                    lib.whisper_full_get_token_p_from_state(state, i, j),
                )
            )
        return RawSegment(
            lib.whisper_full_get_segment_t0_from_state(state, i),
            lib.whisper_full_get_segment_t1_from_state(state, i),
            bytes(ffi.string(lib.whisper_full_get_segment_text_from_state(state, i))),
            tuple(tokens),
        )

    def _raise_if_stopped(self, options: RunOptions, text: str) -> None:
        if self._reason == _DEADLINE:
            raise DeadlineExceededError(
                f"the transcription did not end within {options.deadline_s:g} s",
                reason=_DEADLINE,
                text=text,
            )
        if self._reason is not None:
            why = "its model was closed" if self._reason == _CLOSE else "cancelled"
            raise CancelledError(
                f"the transcription was stopped: {why}", reason=self._reason, text=text
            )


def _runs_f32(library: WhisperLibrary) -> bool:
    names = cdefs.WHISPER.names()
    return names.index(library.abi.name or "") >= names.index(_F32_SINCE)


def _nothing(_ptr: object) -> None:
    """Free nothing."""
