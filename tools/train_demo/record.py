"""Record a prompt whose greedy continuation is the same on every build and device.

``python -m tools.train_demo.record`` asks candidates through llama_cffi, measures by how much the
chosen token leads the next one at every step, and keeps the candidate whose smallest lead is the
largest. It is written to ``llama_cffi/demo/recorded.json`` for ``llama-cffi doctor`` and the tests.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from llama_cffi import Batch, Context, Model
from llama_cffi.demo import model_path, recorded_path

from .template import render

SYSTEM = "You are a helpful assistant."
CANDIDATES = (
    "Repeat: river moon stone",
    "Write 2024-03-15 in words.",
    "What day is 3 days after Monday?",
    "Turn on the lamp in the kitchen.",
    "Turn off the heater in the bedroom. Answer in JSON.",
    "My cat is called Milo. My dog is called Rex. What is my cat called?",
    "Anna lives in Paris. Tom lives in Rome. Where does Tom live?",
    "Repeat: river moon stone cloud tree",
    "Reverse: 1 2 3 4 5",
    "Who are you?",
    "What can you do?",
)
HOW = (
    "python -m tools.train_demo.record: of {n} candidates the one whose chosen token leads the "
    "next by the most at its closest step; logits of llama.cpp on a CPU, greedy, one "
    "token at a time. The continuation includes the token that ends the turn."
)


@dataclass(frozen=True)
class Recorded:
    """A prompt, its greedy continuation and how safe that is.

    Attributes:
        how: How this was made.
        prompt: The rendered text, special tokens included.
        tokens: Its ids.
        continuation: The greedy ids that follow, the end of turn included.
        text: The continuation without the end of turn.
        smallest_lead: Least difference between the largest and the second logit over all steps.
    """

    how: str
    prompt: str
    tokens: list[int]
    continuation: list[int]
    text: str
    smallest_lead: float


def record(model: Model, question: str) -> Recorded:
    """Continue one question greedily and measure the leads."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    prompt = render(messages)
    tokens = model.vocab.tokenize(prompt, add_special=False, parse_special=True)
    said: list[int] = []
    lead = float("inf")
    with Context(model, n_ctx=512) as context:
        batch = Batch(512, library=model.library)
        batch.fill(tokens, 0)
        while True:
            context.decode(batch)
            second, first = np.argsort(context.logits(-1))[-2:]
            lead = min(lead, float(context.logits(-1)[first] - context.logits(-1)[second]))
            said.append(int(first))
            if model.vocab.is_eog(said[-1]) or len(tokens) + len(said) >= 512:
                break
            batch.fill(said[-1:], len(tokens) + len(said) - 1)
    text = model.vocab.detokenize(said[:-1])
    return Recorded(HOW.format(n=len(CANDIDATES)), prompt, tokens, said, text, round(lead, 2))


def main() -> None:
    """Record the best candidate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=model_path())
    parser.add_argument("--output", type=Path, default=recorded_path())
    parser.add_argument("--least", type=int, default=16, help="least length in tokens")
    args = parser.parse_args()
    with Model(args.model, n_gpu_layers=0) as model:
        found = [record(model, question) for question in CANDIDATES]
    for item in found:
        print(f"{item.smallest_lead:7.2f}  {len(item.continuation):4}  {item.text!r}")
    best = max(
        (item for item in found if len(item.continuation) >= args.least),
        key=lambda item: item.smallest_lead,
    )
    args.output.write_text(json.dumps(asdict(best), ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
