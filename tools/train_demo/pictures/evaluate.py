"""Ask about held-out pictures through llama_cffi, greedily, and count right answers.

``python -m tools.train_demo.pictures.evaluate [GGUF MMPROJ] [-n 200] [--json FILE]``; the exit code
is 1 when a kind stays below 95 %. Needs a build with libmtmd, and neither torch nor a tokenizer
package.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from llama_cffi import Llama
from llama_cffi.demo import picture_model_path, picture_projector_path

from .drawing import draw
from .questions import KINDS, Question, ask
from .scenes import draw_scene

REQUIRED = 0.95


def questions(kind: str, n: int, seed: int) -> Iterator[tuple[NDArray[np.uint8], Question]]:
    """Draw ``n`` held-out pictures with one question of ``kind`` each.

    The same arguments give the same ones. Pictures have the sizes of the training, 43 to 320
    pixels a side; libmtmd resizes them.
    """
    rng = random.Random(f"{seed}:{kind}")
    while n:
        scene = draw_scene(rng, heldout=True)
        question = ask(kind, scene, rng)
        if question is not None:
            n -= 1
            yield draw(scene), question


def answer(llm: Llama, picture: NDArray[np.uint8], question: str) -> str:
    """Ask one question about a picture and return the whole answer."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    reply = llm.create_chat_completion(
        [{"role": "user", "content": content}], temperature=0, max_tokens=60
    )
    return str(reply["choices"][0]["message"]["content"])


def main() -> int:
    """Parse the command line, evaluate, print a table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=picture_model_path())
    parser.add_argument("mmproj", type=Path, nargs="?", default=picture_projector_path())
    parser.add_argument("-n", type=int, default=200, help="questions per kind")
    parser.add_argument("--kind", choices=list(KINDS), nargs="*", default=list(KINDS))
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--show", type=int, default=3, help="failures to print per kind")
    parser.add_argument("--json", type=Path, help="write every failure to this file")
    args = parser.parse_args()
    low, failures = [], []
    print(f"{'kind':<12}{'n':>6}{'correct':>9}{'accuracy':>10}")
    with Llama(args.model, mmproj=args.mmproj, n_ctx=512, n_threads=1, n_gpu_layers=0) as llm:
        for kind in args.kind:
            wrong = []
            for picture, question in tqdm(questions(kind, args.n, args.seed), leave=False):
                said = answer(llm, picture, question.text)
                if said != question.answer:
                    wrong.append([kind, question.text, said, question.answer])
            accuracy = 1 - len(wrong) / args.n
            print(f"{kind:<12}{args.n:>6}{args.n - len(wrong):>9}{accuracy:>10.1%}", flush=True)
            for _, asked, said, wanted in wrong[: args.show]:
                print(f"    {asked!r} -> {said!r}, not {wanted!r}")
            failures += wrong
            low += [kind] if accuracy < REQUIRED else []
    if args.json:
        args.json.write_text(json.dumps(failures, indent=1) + "\n")
    print(
        f"below {REQUIRED:.0%}: {', '.join(low)}" if low else f"every kind reaches {REQUIRED:.0%}"
    )
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
