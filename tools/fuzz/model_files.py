"""Mutated model files: a seed gives the same files everywhere.

    python -m tools.fuzz.model_files FILE     use one file, as the fuzzer does

A file begins as a tiny model of one of many architectures (`support.architectures`) or a LoRA,
and gets one to three changes of any kind: tensor types, shapes and names, metadata, vocabulary,
weights, or bytes. With `LLAMA_CFFI_CHECK=rules` the rules over the header stand alone, which is ten
times faster than with the child process that tries what they do not decide about.
"""

from __future__ import annotations

import functools
import math
import random
import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from support.architectures import WRITE
from support.gguf_codec import (
    ARRAY,
    BOOL,
    FLOAT,
    FLOATS,
    INTEGERS,
    STRING,
    TYPES,
    U32,
    Array,
    Gguf,
    Tensor,
    Value,
    decode,
)
from support.loras import make_pairs, write_lora

from tools.fuzz import gguf_names

if TYPE_CHECKING:
    from llama_cffi import Model

__all__ = ["ARCHITECTURES", "cases", "mutate", "run"]

_LORA = "lora"
_LAYER = re.compile(rb"^((enc|dec)\.)?blk\.\d+\.")
ARCHITECTURES = (*WRITE, _LORA)

Edit = Callable[[random.Random, Gguf], str]

_NUMBERS = [0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 48, 64, 96, 128, 255, 256, 257, 512, 1000]
_NUMBERS += [-1, -2, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
_REALS = [0.0, -1.0, 0.5, 1e-30, 1e30, math.nan, math.inf, -math.inf, 10000.0]
_TEXTS = [
    "",
    "x",
    "none",
    "yarn",
    "linear",
    "longrope",
    "llama",
    "default",
    "\0",
    "1",
    "\xff" * 300,
]
_VOCABULARIES = ("llama", "gpt2", "bert", "t5", "rwkv", "plamo2", "none", "no_vocab", "replit", "")
# Keys that files may have beside those of the tiny models: name -> value type.
_MORE_KEYS = {
    **dict.fromkeys(gguf_names.INTEGER_KEYS, U32),
    **dict.fromkeys(gguf_names.REAL_KEYS, FLOAT),
    **dict.fromkeys(gguf_names.FLAG_KEYS, BOOL),
    "rope.scaling.type": STRING,
    "rope.dimension_sections": ARRAY,
}


# -- Tensors ----------------------------------------------------------------------------------


def _pick(rng: random.Random, gguf: Gguf) -> Tensor:
    """Pick a tensor; small families such as biases as often as matrices."""
    families: dict[bytes, list[Tensor]] = {}
    for tensor in gguf.tensors:
        families.setdefault(_part(tensor), []).append(tensor)
    return rng.choice(rng.choice(list(families.values())))


def _part(tensor: Tensor) -> bytes:
    """Return the name without the layer."""
    return _LAYER.sub(b"", tensor.name)


def _refill(rng: random.Random, tensor: Tensor) -> None:
    """Give the tensor data of the size that its shape and type need, if it is not huge."""
    block, size = TYPES.get(tensor.kind, (1, 4))
    n_bytes = math.prod(tensor.shape) // block * size
    if 0 <= n_bytes < 1 << 22:
        raw = rng.choice([tensor.data, rng.randbytes(64), bytes(4)]) or bytes(1)
        tensor.data = (raw * (n_bytes // len(raw) + 1))[:n_bytes]


def _tensor_type(rng: random.Random, gguf: Gguf) -> str:
    tensor = _pick(rng, gguf)
    kinds = [k for k, (block, _) in TYPES.items() if tensor.shape[0] % block == 0]
    tensor.kind = rng.choice([*kinds, 1, 30, 8 if 8 in kinds else 24, 28])
    _refill(rng, tensor)
    return f"{_name(tensor)} has type {tensor.kind}"


def _family_type(rng: random.Random, gguf: Gguf) -> str:
    """Change the type of the same tensor in every layer."""
    first = _pick(rng, gguf)
    part = _part(first)
    kinds = [k for k, (block, _) in TYPES.items() if first.shape[0] % block == 0]
    kind = rng.choice([*kinds, 1, 30])
    for tensor in gguf.tensors:
        if tensor.name.endswith(part) and tensor.shape[0] == first.shape[0]:
            tensor.kind = kind
            _refill(rng, tensor)
    return f"every {part.decode()} has type {kind}"


def _tensor_shape(rng: random.Random, gguf: Gguf) -> str:
    tensor = _pick(rng, gguf)
    before, shape = tuple(tensor.shape), tensor.shape
    at = rng.randrange(len(shape))
    match rng.randrange(8):
        case 0:
            shape.reverse()
        case 1:
            shape[at] = max(1, shape[at] + rng.choice([-1, 1]))
        case 2:
            shape[at] *= 2
        case 3:
            shape[at] = max(1, shape[at] // 2)
        case 4:
            shape.append(rng.choice([1, 2]))
        case 5:
            shape.insert(0, rng.choice([1, 2, 32]))
        case 6 if len(shape) > 1:
            shape.pop(at)
        case _:
            shape[at] = rng.choice([n for n in _NUMBERS if n >= 0])
    _refill(rng, tensor)
    return f"{_name(tensor)} is {tuple(shape)}, not {before}"


def _tensor_lost(rng: random.Random, gguf: Gguf) -> str:
    tensor = _pick(rng, gguf)
    gguf.tensors = [t for t in gguf.tensors if t is not tensor]
    return f"no {_name(tensor)}"


def _family_lost(rng: random.Random, gguf: Gguf) -> str:
    part = _part(_pick(rng, gguf))
    gguf.tensors = [t for t in gguf.tensors if not t.name.endswith(part)]
    return f"no {part.decode()} in any layer"


def _tensor_renamed(rng: random.Random, gguf: Gguf) -> str:
    tensor = _pick(rng, gguf)
    before, old = _name(tensor), tensor.name
    other = _pick(rng, gguf).name
    new = [other, old + b"\0", old[:-1], old + b"x" * 64, b"", b"\xff", old.replace(b"0", b"1")]
    new += [old.replace(b"weight", b"bias"), old.replace(b"bias", b"weight"), old.upper()]
    tensor.name = rng.choice(new)
    return f"{before} is called {_name(tensor)}"


def _tensor_twice(rng: random.Random, gguf: Gguf) -> str:
    tensor = _pick(rng, gguf)
    gguf.tensors.append(Tensor(tensor.name, list(tensor.shape), tensor.kind, tensor.data))
    return f"{_name(tensor)} occurs twice"


def _tensor_more(rng: random.Random, gguf: Gguf) -> str:
    layer = rng.choice(["blk.0.", "blk.1.", "blk.0.", "enc.blk.0.", "dec.blk.0.", "blk.9."])
    name = rng.choice(
        [layer + rng.choice(gguf_names.LAYER_TENSORS), rng.choice(gguf_names.TOP_TENSORS)]
    )
    like = _pick(rng, gguf)
    widths = [n for t in gguf.tensors[:8] for n in t.shape] + [1, 4, 16, 32]
    one = [rng.choice(widths)]
    shape = rng.choice([list(like.shape), one, one, [*one, rng.choice(widths)]])
    tensor = Tensor(name.encode(), shape, rng.choice([0, 0, 0, 1, 30, 24, 28]), b"")
    _refill(rng, tensor)
    gguf.tensors = [t for t in gguf.tensors if t.name != tensor.name] + [tensor]
    return f"{name} of type {tensor.kind} and shape {tuple(shape)} was added"


def _tensor_place(rng: random.Random, gguf: Gguf) -> str:
    tensor = _pick(rng, gguf)
    tensor.offset = rng.choice([1, 16, 32, 64, 2**40, 2**63, 2**64 - 32])
    return f"{_name(tensor)} begins at {tensor.offset}"


def _weights(rng: random.Random, gguf: Gguf) -> str:
    tensor = _pick(rng, gguf)
    one = rng.choice([math.nan, math.inf, 0.0, 1e30, -1e30, None])
    raw = rng.randbytes(256) if one is None else struct.pack("<f", one)
    tensor.data = (raw * (len(tensor.data) // len(raw) + 1))[: len(tensor.data)]
    return f"{_name(tensor)} is full of {'random bytes' if one is None else one}"


# -- Metadata ---------------------------------------------------------------------------------


def _some_value(rng: random.Random, gguf: Gguf, kind: int, near: object = 0) -> Value:
    if kind in INTEGERS:
        whole = near if isinstance(near, int) else 0
        close = [whole + 1, whole - 1, whole * 2, whole // 2, whole * 3, -whole]
        return Value(kind, rng.choice(rng.choice([_NUMBERS, close])))
    if kind in FLOATS:
        return Value(kind, rng.choice(_REALS))
    if kind == BOOL:
        return Value(kind, rng.choice([0, 1, 1, 77]))
    if kind == STRING:
        return Value(kind, rng.choice(_TEXTS))
    items = rng.choice([4, 5, FLOAT, 0, BOOL, STRING, 2, 11])
    blocks = [v.value for k, v in gguf.keys.items() if k.endswith(".block_count")]
    n_layer = blocks[0] if blocks and isinstance(blocks[0], int) and blocks[0] < 99 else 2
    length = rng.choice([n_layer, n_layer, n_layer, 4, 0, 1, n_layer + 1, 600])
    values = [_some_value(rng, gguf, items, near).value for _ in range(3)]
    same = rng.random() < 0.5
    return Value(
        ARRAY, Array(items, [values[0] if same else rng.choice(values) for _ in range(length)])
    )


def _set(gguf: Gguf, key: str, value: Value) -> str:
    gguf.keys[key] = value
    text = repr(value.value)
    return f"{key} is {text if len(text) < 60 else text[:60] + '...'} (type {value.kind})"


def _key_value(rng: random.Random, gguf: Gguf) -> str:
    keys = [k for k, v in gguf.keys.items() if v.kind != ARRAY or "tokenizer" not in k]
    key = rng.choice([k for k in keys if "tokenizer" not in k] if rng.random() < 0.7 else keys)
    before = gguf.keys[key]
    return _set(gguf, key, _some_value(rng, gguf, before.kind, before.value))


def _key_type(rng: random.Random, gguf: Gguf) -> str:
    key = rng.choice(list(gguf.keys))
    before = gguf.keys[key]
    kind = rng.choice([*INTEGERS, *FLOATS, BOOL, STRING, ARRAY, ARRAY, ARRAY])
    value = _some_value(rng, gguf, kind, before.value)
    if kind in INTEGERS and isinstance(before.value, int) and rng.random() < 0.5:
        value.value = before.value
    return _set(gguf, key, value)


def _key_lost(rng: random.Random, gguf: Gguf) -> str:
    key = rng.choice(list(gguf.keys))
    del gguf.keys[key]
    return f"no {key}"


def _key_more(rng: random.Random, gguf: Gguf) -> str:
    key = rng.choice(list(_MORE_KEYS))
    kind = _MORE_KEYS[key] if rng.random() < 0.8 else ARRAY
    return _set(gguf, f"{_prefix(gguf)}.{key}", _some_value(rng, gguf, kind, 32))


def _tokenizer_key(rng: random.Random, gguf: Gguf) -> str:
    if rng.random() < 0.3:
        key = rng.choice(gguf_names.TOKENIZER_FLAGS)
        return _set(gguf, f"tokenizer.ggml.{key}", _some_value(rng, gguf, rng.choice([BOOL, U32])))
    key = rng.choice(gguf_names.TOKEN_KEYS)
    return _set(gguf, f"tokenizer.ggml.{key}", _some_value(rng, gguf, rng.choice([U32, 5]), 256))


def _split(rng: random.Random, gguf: Gguf) -> str:
    kind = rng.choice([2, 2, U32, 10, FLOAT, STRING, ARRAY])
    key = rng.choice(["split.count", "split.count", "split.no", "split.tensors.count"])
    return _set(gguf, key, _some_value(rng, gguf, kind, 1))


def _architecture(rng: random.Random, gguf: Gguf) -> str:
    """Change the architecture, and the keys that begin with it."""
    old, new = _prefix(gguf), rng.choice(gguf_names.ARCHITECTURES)
    gguf.keys = {k.replace(f"{old}.", f"{new}.", 1): v for k, v in gguf.keys.items()}
    return _set(gguf, "general.architecture", Value(STRING, new))


# -- Vocabulary -------------------------------------------------------------------------------


def _vocabulary(rng: random.Random, gguf: Gguf) -> str:
    value = gguf.keys.get("tokenizer.ggml.tokens")
    if value is None or value.kind != ARRAY or value.value.kind != STRING:
        return _key_value(rng, gguf)
    items: list[bytes] = value.value.items
    at = rng.randrange(len(items) or 1)
    one = items[at % len(items)] if items else b"x"
    odd = [
        b"",
        b"\0",
        one + b"\0",
        one + b"\0\0",
        b"\xff\xfe",
        b"\n",
        b" ",
        b"x" * 3000,
        "é".encode(),
    ]
    odd += [
        b"<0x0A>",
        b"<0xZZ>",
        b"<0x",
        b"\xe2\x96\x81",
        b"[UNK]",
        b"</s>",
        b"<|im_end|>",
        b"\\x00",
    ]
    match rng.randrange(6):
        case 0:
            value.value.items = items[: rng.choice([0, 1, 3, 12, 100, len(items) - 1])]
            return f"{len(value.value.items)} tokens"
        case 1:
            value.value.items = items + [b"more%d" % i for i in range(rng.choice([1, 5, 700]))]
            return f"{len(value.value.items)} tokens"
        case 2:
            rng.shuffle(items)
            return "tokens in another order"
        case 3:
            text = rng.choice(odd)
            value.value.items = [text + b"%d" % i * rng.randint(0, 1) for i in range(len(items))]
            return f"tokens like {text[:20]!r}"
        case _:
            new = rng.choice(odd)
            for place in rng.sample(range(len(items)), min(len(items), rng.choice([1, 1, 2, 30]))):
                items[place] = new
            return f"tokens {new[:20]!r}"


def _merges(rng: random.Random, gguf: Gguf) -> str:
    odd = [
        b"\0 \0",
        b"\0",
        b"! !",
        b"a",
        b" ",
        b"a ",
        b" a",
        b"a b c",
        b"",
        b"\xff \xff",
        b"a\0 b",
        b"  ",
    ]
    odd += [b"x" * 5000 + b" y", b"a a", "é é".encode(), b"\xc4\xa0 a", b"a b\0", b"a b"]
    items = [rng.choice(odd) for _ in range(rng.choice([0, 1, 1, 2, 50]))]
    return _set(gguf, "tokenizer.ggml.merges", Value(ARRAY, Array(STRING, items)))


def _token_arrays(rng: random.Random, gguf: Gguf) -> str:
    tokens = gguf.keys.get("tokenizer.ggml.tokens")
    n = len(tokens.value.items) if tokens and tokens.kind == ARRAY else 8
    n = rng.choice([n, n, n, n - 1, n + 1, 0])
    match rng.randrange(3):
        case 0:
            some = rng.sample(range(-2, 9), 3)
            value = Array(rng.choice([4, 5]), [rng.choice(some) for _ in range(n)])
            return _set(gguf, "tokenizer.ggml.token_type", Value(ARRAY, value))
        case 1:
            value = Array(FLOAT, [rng.choice(_REALS) for _ in range(n)])
            return _set(gguf, "tokenizer.ggml.scores", Value(ARRAY, value))
        case _:
            raw = rng.choice([b"", b"\0" * 8, rng.randbytes(64), b"\x08\0\0\0" + rng.randbytes(64)])
            value = Array(rng.choice([0, 1]), list(raw) if raw else [])
            return _set(gguf, "tokenizer.ggml.precompiled_charsmap", Value(ARRAY, value))


def _tokenizer(rng: random.Random, gguf: Gguf) -> str:
    if rng.random() < 0.4:
        name = rng.choice(gguf_names.PRETOKENIZERS)
        return _set(gguf, "tokenizer.ggml.pre", Value(STRING, name))
    return _set(gguf, "tokenizer.ggml.model", Value(STRING, rng.choice(_VOCABULARIES)))


def _template(rng: random.Random, gguf: Gguf) -> str:
    texts = [
        b"",
        b"{{",
        b"\xff",
        b"{% for x in y %}",
        b"{{ messages[9].x.y }}",
        b"\0",
        b"x" * 10**5,
    ]
    key = rng.choice(["tokenizer.chat_template", "tokenizer.chat_template.tool_use"])
    return _set(gguf, key, Value(STRING, rng.choice(texts)))


_EDITS: dict[Edit, int] = {
    _tensor_type: 5, _family_type: 4, _tensor_shape: 4, _tensor_lost: 3, _family_lost: 2,
    _tensor_renamed: 2, _tensor_twice: 1, _tensor_more: 4, _tensor_place: 1, _weights: 1,
    _key_value: 6, _key_type: 3, _key_lost: 2, _key_more: 5, _tokenizer_key: 2, _split: 1,
    _architecture: 3, _vocabulary: 3, _merges: 1, _token_arrays: 2, _tokenizer: 2, _template: 1,
}  # fmt: skip


def mutate(seed: int, architecture: str) -> tuple[bytes, str]:
    """Return a file and what was changed in it.

    Args:
        seed: The same seed gives the same file.
        architecture: One of `ARCHITECTURES`.
    """
    rng = random.Random(f"{architecture} {seed}")
    gguf = decode(_original(architecture))
    edits, weights = list(_EDITS), list(_EDITS.values())
    said = []
    for edit in rng.choices(edits, weights, k=rng.choice([1, 1, 1, 1, 2, 3])):
        if gguf.tensors and gguf.keys:
            said.append(edit(rng, gguf))
    data = gguf.encode()
    if rng.random() < 0.1:
        data, what = _damage(rng, data)
        said.append(what)
    return data, "; ".join(said)


def _damage(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    header = min(len(data), data.rfind(b".weight") + 64)
    at = rng.randrange(4, header)
    if rng.random() < 0.2:
        return data[:at], f"cut at {at}"
    width = rng.choice([1, 1, 4, 8])
    new = (rng.choice(_NUMBERS) % 2 ** (8 * width)).to_bytes(width, "little")
    return data[:at] + new + data[at + width :], f"bytes at {at} are {new.hex()}"


def cases(seed: int, count: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Write *count* mutated files to *folder*, one for each step.

    Yields:
        What was changed, and the file.
    """
    (folder / "llama.gguf").write_bytes(_original("llama"))  # LoRAs are used with it
    for i in range(count):
        architecture = ARCHITECTURES[i % len(ARCHITECTURES)]
        data, said = mutate(seed * 1_000_003 + i, architecture)
        path = folder / f"{architecture}-{seed}-{i}.gguf"
        path.write_bytes(data)
        yield f"{architecture}: {said}", path


def run(path: Path) -> str:
    """Use a file as a caller does, with the library that `LLAMA_CFFI_LIB` names.

    Returns:
        `loaded`, or the first line of the first error.
    """
    from llama_cffi import LlamaError, Model

    lora = path if path.name.startswith(_LORA) else None
    errors = []
    try:
        with Model(path.with_name("llama.gguf") if lora else path, n_gpu_layers=0) as model:
            for use in (_adapt,) if lora else (_read, _generate, _embed, _translate):
                try:
                    use(model, path)
                except LlamaError as e:
                    errors.append(e)
    except LlamaError as e:
        errors.append(e)
    return f"{type(errors[0]).__name__}: {str(errors[0]).splitlines()[0]}" if errors else "loaded"


def _read(model: Model, _: Path) -> None:
    vocab = model.vocab
    repr((model, model.description, model.metadata, model.chat_template, model.classifier_labels))
    repr((vocab.bos, vocab.eos, vocab.eot, vocab.fim_pre, vocab.type))
    vocab.tokenize("H\u00e9 l\0lo <|im_end|>\n\n123 \U0001f600", parse_special=True)
    vocab.detokenize(range(len(vocab)), special=True)


def _generate(model: Model, _: Path) -> None:
    from llama_cffi import Engine

    with Engine(model, n_ctx=48, n_threads=1, n_batch=32) as engine:
        engine.generate_tokens([1, 2, 3], 2, temperature=0)
        engine.generate("h\u00e9 l", n_predict=2, seed=1)


def _embed(model: Model, _: Path) -> None:
    from llama_cffi import Embedder

    with Embedder(model, n_ctx=32, n_threads=1) as embedder:
        embedder.embed_tokens([[1, 2, 3], [2]])


def _translate(model: Model, _: Path) -> None:
    from llama_cffi import Batch, Context

    if model.has_encoder and model.has_decoder:
        with Context(model, n_ctx=32, n_threads=1) as context:
            batch = Batch(4)
            batch.fill([1, 2, 3], 0)
            context.encode(batch)
            context.decode(batch)


def _adapt(model: Model, path: Path) -> None:
    from llama_cffi import Batch, Context, LoraAdapter

    with Context(model, n_ctx=32, n_threads=1) as context:
        context.set_adapters({LoraAdapter(model, path): 1.0})
        batch = Batch(4)
        batch.fill([1, 2, 3], 0)
        context.decode(batch)


@functools.cache
def _original(architecture: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        if architecture == _LORA:
            write_lora(path, make_pairs())
        else:
            WRITE[architecture](path)
        return path.read_bytes()


def _prefix(gguf: Gguf) -> str:
    value = gguf.keys.get("general.architecture")
    return value.value.decode() if value and isinstance(value.value, bytes) else "llama"


def _name(tensor: Tensor) -> str:
    return repr(tensor.name.decode("utf-8", "replace"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        given = Path(sys.argv[1])
        copy = shutil.copy(given, folder)
        Path(folder, "llama.gguf").write_bytes(_original("llama"))
        print(run(Path(copy)))
