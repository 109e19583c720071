"""Ask the demo model held-out questions through llama_cffi, greedily, and count right answers.

``python -m tools.train_demo.evaluate [GGUF] [-n 200] [--kind KIND ...] [--json FILE]``; the exit
code is 1 when a kind stays below 95 %. Needs neither torch nor a tokenizer package.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from llama_cffi import Engine
from llama_cffi.demo import model_path

from .conversations import EVALUATED, Conversation, heldout, is_correct

REQUIRED = 0.95
N_CTX = 1024


@dataclass
class Score:
    """How one kind did."""

    kind: str
    n: int = 0
    correct: int = 0
    accuracy: float = 0.0
    failures: list[dict[str, str]] = field(default_factory=list)


def questions(kind: str, n: int, seed: int) -> list[Conversation]:
    """Draw ``n`` held-out conversations of ``kind``; the same arguments give the same ones."""
    rng = random.Random(f"{seed}:{kind}")
    return [heldout(kind, rng) for _ in range(n)]


def answer(engine: Engine, conversation: Conversation) -> str:
    """Continue the conversation greedily until the model ends its turn."""
    tokens = engine.tokenize(conversation.prompt(), add_special=False, parse_special=True)
    room = N_CTX - len(tokens) - 8
    said = engine.generate_tokens(tokens, n_predict=room, temperature=0, repeat_penalty=1.0)
    return engine.detokenize(said)


def evaluate(engine: Engine, kind: str, n: int, seed: int) -> Score:
    """Score ``n`` questions of one kind."""
    score = Score(kind, n)
    for conversation in tqdm(questions(kind, n, seed), desc=kind, leave=False):
        text = answer(engine, conversation)
        if is_correct(conversation, text):
            score.correct += 1
        else:
            asked = str(conversation.messages[-1]["content"])
            wanted = conversation.answers[0]
            score.failures.append({"asked": asked, "wanted": wanted, "answered": text})
    score.accuracy = score.correct / n
    return score


def main() -> int:
    """Parse the command line, evaluate, print a table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=model_path())
    parser.add_argument("-n", type=int, default=1000, help="questions per kind")
    parser.add_argument("--kind", choices=EVALUATED, nargs="*", default=EVALUATED)
    parser.add_argument("--seed", type=int, default=1)
    # One thread: on two million parameters a second one waits more than it works.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", type=int, default=3, help="failures to print per kind")
    parser.add_argument("--json", type=Path, help="write every score and failure to this file")
    args = parser.parse_args()
    with Engine(args.model, n_ctx=N_CTX, n_threads=args.threads, n_gpu_layers=0) as engine:
        scores = [evaluate(engine, kind, args.n, args.seed) for kind in args.kind]
    print(f"{'kind':<14}{'n':>6}{'correct':>9}{'accuracy':>10}")
    for score in scores:
        print(f"{score.kind:<14}{score.n:>6}{score.correct:>9}{score.accuracy:>10.1%}")
        for failure in score.failures[: args.show]:
            print(f"    {failure['asked']!r} -> {failure['answered']!r}, not {failure['wanted']!r}")
    if args.json:
        args.json.write_text(json.dumps([asdict(score) for score in scores], indent=1) + "\n")
    low = [score.kind for score in scores if score.accuracy < REQUIRED]
    print(
        f"below {REQUIRED:.0%}: {', '.join(low)}" if low else f"every kind reaches {REQUIRED:.0%}"
    )
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
