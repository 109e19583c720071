"""Train the demo model on a CPU: ``python -m tools.train_demo.train --work DIR``.

Everything is seeded; a run that was stopped goes on from its last checkpoint with ``--resume``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F  # noqa: N812 -- the name everybody reads
from tqdm import tqdm

from .batches import Batch, Encoder, chunk, heldout_accuracy
from .decision_rows import DecisionRows
from .export import export_vocabulary
from .model import Config, Llama
from .restore import read_model, read_tokenizer
from .tokenizer import train_tokenizer


def _progress(state: dict[str, Any], args: argparse.Namespace) -> float:
    """Return the part of the run that is done: of its steps, or of its time if that is more."""
    by_time = state["seconds"] / (60 * args.minutes) if args.minutes else 0.0
    return float(max(state["step"] / args.steps, by_time))


def _schedule(state: dict[str, Any], args: argparse.Namespace) -> float:
    """Scale the rate: warm up, hold, then fall linearly to zero over the last ``decay`` steps."""
    rising = (state["step"] + 1) / args.warmup
    falling = (1 - _progress(state, args)) * args.steps / args.decay
    return float(max(0.0, min(1.0, rising, falling)))


def _optimizers(model: Llama, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Use Muon for the matrices and AdamW for embeddings and norms.

    Muon (https://kellerjordan.github.io/posts/muon/) needs far fewer tokens here for a fifth more
    time per step.
    """
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embd" not in n]
    rest = [p for n, p in model.named_parameters() if p.dim() != 2 or "embd" in n]
    return [
        torch.optim.Muon(
            matrices,
            lr=args.muon_lr,
            weight_decay=args.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


Hidden = Callable[[torch.Tensor], torch.Tensor]


def _loss(model: Llama, hidden: Hidden, batch: Batch) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        said = hidden(batch.tokens)[batch.where]
        logits = F.linear(said, model.token_embd.weight)
    losses = F.cross_entropy(logits.float(), batch.targets[batch.where], reduction="none")
    return (losses * batch.weights).sum()


def _report(model: Llama, encoder: Encoder, decisions: DecisionRows, step: int, n: int) -> str:
    found = heldout_accuracy(model, encoder, decisions, n, seed=5)
    return f"step {step}: " + "  ".join(f"{k} {r / t:.2f}" for k, (r, t) in found.items())


def _start(work: Path, from_gguf: Path | None) -> tuple[Llama, Tokenizer]:
    """Return the model to begin with, random or that of a GGUF, and its tokenizer."""
    if from_gguf:
        reader = gguf.GGUFReader(from_gguf)
        read_tokenizer(reader).save(str(work / "tokenizer.json"))
        return read_model(reader).train(), Tokenizer.from_file(str(work / "tokenizer.json"))
    if not (work / "tokenizer.json").exists():
        train_tokenizer(work / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    return Llama(Config(n_vocab=tokenizer.get_vocab_size())), tokenizer


def train(args: argparse.Namespace) -> None:
    """Run the training loop and leave ``model.pt`` and ``log.jsonl`` in ``args.work``."""
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    model, tokenizer = _start(work, args.from_gguf)
    encoder = Encoder(tokenizer)
    export_vocabulary(tokenizer, work / "vocabulary.gguf")
    decisions = DecisionRows(work / "vocabulary.gguf")
    optimizers = _optimizers(model, args)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    state: dict[str, Any] = {"step": 0, "chunk": 0, "offset": 0, "tokens": 0, "seconds": 0.0}
    if args.resume:
        saved = torch.load(args.resume, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, content in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(content)
        state = saved["state"]
    size = sum(p.numel() for p in model.parameters())
    print(f"{size:,} parameters, vocabulary {tokenizer.get_vocab_size()}", flush=True)

    batches_of = partial(
        chunk,
        encoder,
        decisions,
        args.decisions,
        args.short_chunks,
        args.seed,
        batch_tokens=args.batch_tokens,
    )
    hidden: Hidden = torch.compile(model.hidden, dynamic=True) if args.compile else model.hidden
    started = time.monotonic() - state["seconds"]
    bar = tqdm(total=args.steps, initial=state["step"], mininterval=20, dynamic_ncols=False)
    mean = None
    batches = batches_of(state["chunk"])
    while _progress(state, args) < 1:
        if state["offset"] >= len(batches):
            state["chunk"], state["offset"] = state["chunk"] + 1, 0
            batches = batches_of(state["chunk"])
        batch = batches[state["offset"]]
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * _schedule(state, args)
        loss = _loss(model, hidden, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        mean = loss.item() if mean is None else 0.99 * mean + 0.01 * loss.item()
        state["step"] += 1
        state["offset"] += 1
        state["tokens"] += batch.tokens.numel()
        state["seconds"] = time.monotonic() - started
        bar.update()
        bar.set_postfix(
            loss=f"{mean:.4f}", tok_s=int(state["tokens"] / state["seconds"]), refresh=False
        )
        checking = state["step"] % args.check_every == 0 or _progress(state, args) >= 1
        if checking or state["step"] % args.save_every == 0:
            log = {**state, "loss": mean, "schedule": _schedule(state, args)}
            with (work / "log.jsonl").open("a") as file:
                file.write(json.dumps(log) + "\n")
            saved = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "state": state,
            }
            torch.save(saved, work / "model.tmp")
            (work / "model.tmp").replace(work / "model.pt")
        if checking:
            tqdm.write(
                f"loss {mean:.4f} "
                + _report(model, encoder, decisions, state["step"], args.check_items)
            )
    bar.close()


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, tokenizer, log")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--decay", type=int, default=2000, help="steps over which the rate falls")
    parser.add_argument(
        "--minutes", type=float, help="end by then, with the schedule of the steps in that time"
    )
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--muon-lr", type=float, default=5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--batch-tokens", type=int, default=6144)
    parser.add_argument("--check-every", type=int, default=500)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--check-items", type=int, default=32)
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fuse with torch.compile: needs a C++ compiler, a third faster",
    )
    parser.add_argument("--decisions", type=float, default=0.4, help="their share of the rows")
    parser.add_argument(
        "--short-chunks", type=int, default=0, help="chunks of short decisions at the beginning"
    )
    parser.add_argument("--threads", type=int, help="of PyTorch; all cores by default")
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--from-gguf", type=Path, help="a GGUF to begin with, not random weights")
    parser.add_argument("--resume", type=Path, help="a model.pt to go on from")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
