"""A conversation about one picture: it is encoded once, and later turns compute only the rest.

    LLAMA_CFFI_LIB=.../libllama-with-libmtmd.so \
        python benchmarks/pictures.py [--model FILE] [--rounds 5] [--turns 10]

Each round shows a new picture of 224 x 224 pixels and asks about it several times, in one engine;
the projector has six blocks of width 256 and random weights. Prints the medians of the times to the
first token, with rendering and encoding, their ratios within each round (target for turn 2 / turn
1: at most 0.2), and how many pictures were encoded.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from llama_cffi import InferenceEngine, Model
from llama_cffi.demo import model_path

SIDE, PATCH, WIDTH, HIDDEN, HEADS, BLOCKS = 224, 14, 256, 1024, 4, 6


def write_projector(path: Path, n_embd: int) -> Path:
    """Write a projector of type janus_pro, 256 tokens a picture, for models of this width."""
    random, writer = np.random.default_rng(0), gguf.GGUFWriter(path, "clip")

    def add(name: str, *shape: int, bias: bool = True) -> None:
        weights = random.normal(size=shape) / np.sqrt(shape[-1])
        writer.add_tensor(f"{name}.weight", weights.astype(np.float32))
        if bias:
            writer.add_tensor(f"{name}.bias", np.zeros(shape[0], np.float32))

    writer.add_string("general.type", "mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", True)
    writer.add_string("clip.projector_type", "janus_pro")
    for key, number in (
        ("image_size", SIDE), ("patch_size", PATCH), ("embedding_length", WIDTH),
        ("feed_forward_length", HIDDEN), ("block_count", BLOCKS), ("projection_dim", n_embd),
        ("attention.head_count", HEADS),
    ):  # fmt: skip
        writer.add_uint32(f"clip.vision.{key}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    add("v.patch_embd", WIDTH, 3, PATCH, PATCH)
    add("v.position_embd", (SIDE // PATCH) ** 2, WIDTH, bias=False)
    for block in range(BLOCKS):
        for part in ("q", "k", "v", "out"):
            add(f"v.blk.{block}.attn_{part}", WIDTH, WIDTH)
        add(f"v.blk.{block}.ln1", WIDTH)
        add(f"v.blk.{block}.ln2", WIDTH)
        add(f"v.blk.{block}.ffn_up", HIDDEN, WIDTH)
        add(f"v.blk.{block}.ffn_down", WIDTH, HIDDEN)
    add("v.post_ln", WIDTH)
    add("mm.0", n_embd, WIDTH)
    add("mm.1", n_embd, n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ask(engine: InferenceEngine, messages: list[dict[str, Any]], n: int) -> tuple[float, str, int]:
    """Return the time to the first token, the answer, and the tokens that were reused."""
    started = time.perf_counter()
    handle = engine.submit(engine.tokenize_chat(messages), n, temperature=0, listens=True)
    steps = handle.steps()
    text = next(steps).text
    seconds = time.perf_counter() - started
    text += "".join(step.text for step in steps)
    return seconds, text, handle.stats.n_reused


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(model_path()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=10)
    args = parser.parse_args()
    times: list[list[float]] = []
    encoded = []
    with tempfile.TemporaryDirectory() as folder, Model(args.model) as model:
        mmproj = write_projector(Path(folder) / "mmproj.gguf", model.n_embd)
        with InferenceEngine(model, 1, 1024, mmproj=mmproj) as engine:
            engine.warm_up()
            for round in range(-1, args.rounds):  # the first only loads what is needed
                random = np.random.default_rng(round + 1)
                picture = random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
                before, found = engine.media.cache.n_encoded, []
                messages: list[dict[str, Any]] = []
                for turn in range(args.turns):
                    question = f"What is in part {turn} of it?"
                    parts: list[dict[str, Any]] = [{"type": "text", "text": question}]
                    if turn == 0:
                        parts.insert(0, {"type": "image", "image": picture})
                    messages.append({"role": "user", "content": parts})
                    seconds, text, _ = ask(engine, messages, 8)
                    found.append(seconds)
                    messages.append({"role": "assistant", "content": text.strip() or "?"})
                if round >= 0:
                    times.append(found)
                    encoded.append(engine.media.cache.n_encoded - before)
    print(f"{Path(args.model).name}: {args.rounds} rounds of {args.turns} turns")
    print("turn   first token   / turn 1")
    for turn in range(args.turns):
        ratios = [found[turn] / found[0] for found in times]
        median = statistics.median(found[turn] for found in times)
        print(
            f"{turn + 1:4} {median * 1000:10.1f} ms"
            f" {statistics.median(ratios):10.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )
    print(f"pictures encoded per round: {min(encoded)} to {max(encoded)} (target: 1)")


if __name__ == "__main__":
    main()
