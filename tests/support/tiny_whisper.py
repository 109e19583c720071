"""Tiny models of whisper.cpp: random ones, ones that say a given text, and their forward pass."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

N_STATE, N_HEAD, N_AUDIO_CTX, N_TEXT_CTX, N_MELS, N_FFT = 64, 2, 1500, 448, 80, 201
ENGLISH, MULTILINGUAL = 51864, 51865
# Of the English vocabulary; the multilingual one has each of them one later.
EOT, SOT, TRANSCRIBE, BEGIN = 50256, 50257, 50358, 50363
LANGUAGE = SOT + 2  # `en`, in the multilingual vocabulary
WORDS = [" Hello", " world", " again", ".", " über", " 日本"]
TOKENS = [bytes([i]) for i in range(256)] + [word.encode() for word in WORDS]

Weights = dict[str, NDArray[np.float32]]


def word(text: str) -> int:
    """The token of one of `WORDS`."""
    return 256 + WORDS.index(text)


def at(seconds: float, n_vocab: int = ENGLISH) -> int:
    """The timestamp token of a time."""
    return BEGIN + (n_vocab > ENGLISH) + round(seconds * 50)


def random_weights(seed: int = 0, n_vocab: int = ENGLISH, n_layers: int = 1) -> Weights:
    """Weights with which every part of the model matters; shapes as in PyTorch."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float | None = None) -> NDArray[np.float32]:
        fan_in = math.prod(shape[1:]) or 1
        return (rng.normal(size=shape) * (scale or fan_in**-0.5)).astype(np.float32)

    n = N_STATE
    w: Weights = {
        "encoder.positional_embedding": normal(N_AUDIO_CTX, n, scale=0.5),
        "encoder.conv1.weight": normal(n, N_MELS, 3),
        "encoder.conv1.bias": normal(n, scale=0.1),
        "encoder.conv2.weight": normal(n, n, 3),
        "encoder.conv2.bias": normal(n, scale=0.1),
        "decoder.positional_embedding": normal(N_TEXT_CTX, n, scale=0.5),
        "decoder.token_embedding.weight": normal(n_vocab, n),
    }

    def affine(name: str) -> None:
        w[f"{name}.weight"] = 1 + normal(n, scale=0.1)
        w[f"{name}.bias"] = normal(n, scale=0.1)

    def attention(name: str) -> None:
        affine(f"{name}_ln")
        for part in ("query", "key", "value", "out"):
            w[f"{name}.{part}.weight"] = normal(n, n)
            if part != "key":
                w[f"{name}.{part}.bias"] = normal(n, scale=0.1)

    affine("encoder.ln_post")
    affine("decoder.ln")
    for i in range(n_layers):
        for side, parts in (("encoder", ("attn",)), ("decoder", ("attn", "cross_attn"))):
            for part in parts:
                attention(f"{side}.blocks.{i}.{part}")
            affine(f"{side}.blocks.{i}.mlp_ln")
            for layer, (width, out) in {"0": (n, 4 * n), "2": (4 * n, n)}.items():
                w[f"{side}.blocks.{i}.mlp.{layer}.weight"] = normal(out, width)
                w[f"{side}.blocks.{i}.mlp.{layer}.bias"] = normal(out, scale=0.1)
    return w


def scripted_weights(script: Sequence[int], n_vocab: int = ENGLISH) -> Weights:
    """Weights that make the model say *script*, whatever it hears.

    The token after position p is script[p]: the positional embedding points to its embedding, and
    layers add nothing.
    """
    w = random_weights(1, n_vocab)
    for name in w:
        if name.endswith(("attn.out.weight", "attn.out.bias", "mlp.2.weight", "mlp.2.bias")):
            w[name] = np.zeros_like(w[name])
    tokens = w["decoder.token_embedding.weight"]
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    tokens *= 8
    w["decoder.positional_embedding"][:] = 0
    w["decoder.positional_embedding"][: len(script)] = tokens[list(script)] * 50
    w["decoder.ln.weight"][:], w["decoder.ln.bias"][:] = 1, 0
    return w


def header(n_vocab: int = ENGLISH, ftype: int = 0, **changed: int) -> dict[str, int]:
    """The hyperparameters in the order of the file."""
    fields = {
        "n_vocab": n_vocab, "n_audio_ctx": N_AUDIO_CTX, "n_audio_state": N_STATE,
        "n_audio_head": N_HEAD, "n_audio_layer": 1, "n_text_ctx": N_TEXT_CTX,
        "n_text_state": N_STATE, "n_text_head": N_HEAD, "n_text_layer": 1, "n_mels": N_MELS,
        "ftype": ftype,
    }  # fmt: skip
    return {**fields, **changed}


def write_model(
    path: Path,
    weights: Mapping[str, NDArray[np.float32]],
    *,
    ftype: int = 0,
    tokens: Sequence[bytes] = TOKENS,
    **changed: int,
) -> Path:
    """Write a model in whisper.cpp's format: F32 (ftype 0) or F16 (1).

    Args:
        path: The file.
        weights: The tensors by name, with shapes as in PyTorch.
        ftype: Type of the matrices.
        tokens: The vocabulary.
        **changed: Hyperparameters that differ from what the weights have.
    """
    n_vocab = len(weights["decoder.token_embedding.weight"])
    layers = sum(name.endswith("cross_attn.key.weight") for name in weights)
    fields = header(n_vocab, ftype, n_audio_layer=layers, n_text_layer=layers)
    with open(path, "wb") as file:
        file.write(struct.pack("<I11i", 0x67676D6C, *{**fields, **changed}.values()))
        file.write(struct.pack("<2i", N_MELS, N_FFT) + mel_filters().tobytes())
        file.write(struct.pack("<i", len(tokens)))
        for token in tokens:
            file.write(struct.pack("<I", len(token)) + token)
        for name, tensor in weights.items():
            file.write(tensor_bytes(name, tensor, ftype))
    return path


def tensor_bytes(name: str, tensor: NDArray[np.float32], ftype: int = 0) -> bytes:
    """One tensor with its header."""
    if "conv" in name and name.endswith("bias"):
        tensor = tensor[:, None]
    kind = ftype if is_matrix(name, tensor) else 0
    encoded = name.encode()
    shape = tensor.shape[::-1]
    head = struct.pack(f"<3i{len(shape)}i", len(shape), len(encoded), kind, *shape)
    return head + encoded + tensor.astype(np.float16 if kind else np.float32).tobytes()


def mel_filters() -> NDArray[np.float32]:
    """(80, 201) triangles, evenly spaced on the mel scale."""
    mels = np.linspace(0, 2595 * math.log10(1 + 8000 / 700), N_MELS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = np.linspace(0, 8000, N_FFT)[None]
    left, centre, right = (edges[i : i + N_MELS, None] for i in range(3))
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    return (np.maximum(0, triangles) * 2 / (right - left)).astype(np.float32)


def tone(seconds: float, hertz: float = 440.0) -> NDArray[np.float32]:
    """A tone with some noise, 16 kHz."""
    t = np.arange(round(seconds * 16_000)) / 16_000
    noise = np.random.default_rng(0).normal(size=t.size)
    return (0.3 * np.sin(2 * np.pi * hertz * t) + 0.01 * noise).astype(np.float32)


# The forward pass, in float64.

Array = NDArray[np.float64]


def encode(weights: Weights, mel: NDArray[np.float32], *, n_padding: int = 0) -> Array:
    """Return the output of the encoder, (1500, 64), for a spectrogram of (80, 3000).

    Args:
        weights: The tensors by name.
        mel: The spectrogram.
        n_padding: Number of zero keys. With flash attention whisper.cpp attends to its cache of
            1,536 positions, of which the encoder fills 1,500.
    """
    w = _doubles(weights)
    x = _gelu(_convolved(mel.T.astype(np.float64), w, "encoder.conv1", stride=1))
    x = _gelu(_convolved(x, w, "encoder.conv2", stride=2)) + w["encoder.positional_embedding"]
    for i in range(_n_layers(weights)):
        prefix = f"encoder.blocks.{i}"
        x = x + _attention(w, f"{prefix}.attn", x, n_padding=n_padding)
        x = x + _mlp(w, prefix, x)
    return _norm(w, "encoder.ln_post", x)


def logits(weights: Weights, encoded: Array, tokens: Sequence[int], *, n_padding: int = 0) -> Array:
    """Return the logits after each token, (n, n_vocab)."""
    w = _doubles(weights)
    embedding = w["decoder.token_embedding.weight"]
    x = embedding[list(tokens)] + w["decoder.positional_embedding"][: len(tokens)]
    for i in range(_n_layers(weights)):
        prefix = f"decoder.blocks.{i}"
        x = x + _attention(w, f"{prefix}.attn", x, causal=True)
        x = x + _attention(w, f"{prefix}.cross_attn", x, encoded, n_padding=n_padding)
        x = x + _mlp(w, prefix, x)
    return _norm(w, "decoder.ln", x) @ embedding.T


def rounded(weights: Weights) -> Weights:
    """The weights as a file of F16 has them."""
    return {
        name: tensor.astype(np.float16).astype(np.float32) if is_matrix(name, tensor) else tensor
        for name, tensor in weights.items()
    }


def is_matrix(name: str, tensor: NDArray[np.float32]) -> bool:
    """Whether a tensor has the type of the file, and not always F32."""
    return tensor.ndim > 1 and not name.endswith(("bias", "positional_embedding"))


def _doubles(weights: Weights) -> dict[str, Array]:
    return {name: tensor.astype(np.float64) for name, tensor in weights.items()}


def _n_layers(weights: Weights) -> int:
    return sum(name.endswith("cross_attn.key.weight") for name in weights)


def _convolved(x: Array, w: Mapping[str, Array], name: str, stride: int) -> Array:
    """A convolution over time with a kernel of 3: (n, width) to (n / stride, out)."""
    kernel = w[f"{name}.weight"]
    padded = np.pad(x, ((1, 1), (0, 0)))
    taps = (padded[i : i + len(x) : stride] @ kernel[:, :, i].T for i in range(3))
    return sum(taps, start=w[f"{name}.bias"])


def _gelu(x: Array) -> Array:
    """As ggml computes it."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _norm(w: Mapping[str, Array], name: str, x: Array) -> Array:
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def _linear(w: Mapping[str, Array], name: str, x: Array) -> Array:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", np.float64(0))


def _mlp(w: Mapping[str, Array], prefix: str, x: Array) -> Array:
    x = _gelu(_linear(w, f"{prefix}.mlp.0", _norm(w, f"{prefix}.mlp_ln", x)))
    return _linear(w, f"{prefix}.mlp.2", x)


def _attention(
    w: Mapping[str, Array],
    name: str,
    x: Array,
    source: Array | None = None,
    *,
    causal: bool = False,
    n_padding: int = 0,
) -> Array:
    x = _norm(w, f"{name}_ln", x)
    source = x if source is None else source
    queries = _heads(_linear(w, f"{name}.query", x))
    keys, values = (
        np.pad(_heads(_linear(w, f"{name}.{part}", source)), ((0, 0), (0, n_padding), (0, 0)))
        for part in ("key", "value")
    )
    scores = queries @ keys.swapaxes(1, 2) / math.sqrt(N_STATE // N_HEAD)
    if causal:
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    y = (shares @ values).swapaxes(0, 1).reshape(len(x), N_STATE)
    return _linear(w, f"{name}.out", y)


def _heads(x: Array) -> Array:
    return x.reshape(len(x), N_HEAD, -1).swapaxes(0, 1)
