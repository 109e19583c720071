"""The logits of whisper.cpp against a forward pass of the same weights in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tiny_whisper import (
    BEGIN,
    N_MELS,
    SOT,
    Weights,
    encode,
    logits,
    random_weights,
    rounded,
    write_model,
)

from llama_cffi.binding.whisper.library import get_whisper_library
from llama_cffi.binding.whisper.model import WhisperModel

TOKENS = [SOT, BEGIN, 5, 300, 77, BEGIN + 75]
# Of the error; flash attention also sums in 16 bits.
EXACT, FLASH = 1e-3, 1e-2
N_PADDING = 36  # 1,500 positions, rounded up to a multiple of 256


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(n_layers=2)


@pytest.fixture(scope="module", params=[False, True], ids=["exact", "flash"])
def model(
    request: pytest.FixtureRequest,
    weights: Weights,
    libwhisper: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[WhisperModel, bool]]:
    path = write_model(tmp_path_factory.mktemp("w") / "random.bin", weights, ftype=1)
    library = get_whisper_library(libwhisper)
    with WhisperModel(path, library, n_threads=1, flash_attn=request.param) as model:
        yield model, request.param


def spectrogram(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(N_MELS, 3000), scale=0.5).astype(np.float32)


def computed(
    model: WhisperModel, mel: NDArray[np.float32], tokens: list[int]
) -> NDArray[np.float32]:
    """The logits after each token, with the spectrogram given to C."""
    ffi, lib = model.library.ffi, model.library.lib
    n_vocab, rows = model.file.n_vocab, []
    with model.new_state() as state:
        data = ffi.from_buffer("float[]", mel)
        assert not lib.whisper_set_mel_with_state(model.ptr, state.ptr, data, mel.shape[1], N_MELS)
        assert not lib.whisper_encode_with_state(model.ptr, state.ptr, 0, 1)
        for position, token in enumerate(tokens):
            one = ffi.new("whisper_token[]", [token])
            assert not lib.whisper_decode_with_state(model.ptr, state.ptr, one, 1, position, 1)
            row = ffi.buffer(lib.whisper_get_logits_from_state(state.ptr), 4 * n_vocab)
            rows.append(np.frombuffer(row, np.float32).copy())
    return np.array(rows)


def relative(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_logits_are_those_of_the_weights(
    model: tuple[WhisperModel, bool], weights: Weights
) -> None:
    """With flash attention whisper.cpp also attends to the unused positions of its cache."""
    native, is_flash = model
    mel, exact = spectrogram(0), rounded(weights)
    got = computed(native, mel, TOKENS)
    plain, padded = (
        logits(exact, encode(exact, mel, n_padding=n), TOKENS, n_padding=n) for n in (0, N_PADDING)
    )
    for i in range(len(TOKENS)):
        if is_flash:
            assert relative(got[i], padded[i]) < min(FLASH, relative(got[i], plain[i]) / 2)
        else:
            assert relative(got[i], plain[i]) < EXACT


def test_other_audio_gives_other_logits(model: tuple[WhisperModel, bool]) -> None:
    native, _ = model
    first, second, again = (computed(native, spectrogram(seed), TOKENS[:2]) for seed in (0, 1, 0))
    assert relative(first, second) > 0.01
    assert np.array_equal(first, again)
