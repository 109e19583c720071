"""Train the picture model on a CPU: ``python -m tools.train_demo.pictures.train --work DIR``.

First the encoder alone learns which shape stands where; then both models learn to answer. The
language model begins as the demo model. A run that was stopped goes on with ``--resume``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- the name everybody reads

from llama_cffi.demo import model_path

from ..restore import read_model, read_tokenizer
from .batches import IGNORED, Batch, Maker, heldout_accuracy
from .model import PictureModel, Vision, VisionConfig
from .scenes import COLOURS, SHAPES

#: Shapes, colours, columns, rows; the first of each is for patches without the centre of a shape.
_SORTS = (1 + len(SHAPES), 1 + len(COLOURS), 4, 4)


class Trainee(nn.Module):
    """The picture model and the head that tells the encoder what stands where; not exported."""

    def __init__(self, model: PictureModel) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.vision.config.n_out, sum(_SORTS))

    def see(self, pictures: Tensor, things: Tensor) -> Tensor:
        """Compute the loss of shape, colour, column and row at every patch."""
        said = self.head(self.model.vision(pictures)).float().split(_SORTS, -1)
        losses = [
            F.cross_entropy(part.flatten(0, 1), things[..., i].flatten(), reduction="none")
            for i, part in enumerate(said)
        ]
        weight = torch.where(things[..., 0] > 0, 2.0, 1.0).flatten()
        return (torch.stack(losses).sum(0) * weight).sum() / weight.sum()

    def answer(self, batch: Batch) -> Tensor:
        """Compute the logits of every target, (number of targets, n_vocab)."""
        hidden = self.model.hidden(
            batch.pictures, batch.tokens, batch.starts, batch.positions, batch.mask
        )
        return F.linear(hidden[batch.targets != IGNORED], self.model.text.token_embd.weight)


def _optimizers(trainee: Trainee, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Use Muon for the matrices and AdamW for embeddings, norms and biases."""
    matrices: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    rest = []
    for name, parameter in trainee.named_parameters():
        if parameter.dim() == 2 and "embd" not in name and "head." not in name:
            matrices["text" in name].append(parameter)
        else:
            rest.append(parameter)
    return [
        torch.optim.Muon(
            [
                {"params": matrices[False], "lr": args.muon_lr},
                {"params": matrices[True], "lr": args.muon_lr * args.text_rate},
            ],
            weight_decay=0.05,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def _set_rates(
    optimizers: list[torch.optim.Optimizer],
    rates: list[float],
    state: dict[str, Any],
    args: argparse.Namespace,
) -> None:
    """Warm up, hold, then fall: for the encoder alone, and again for both."""
    alone = 60 * args.vision_minutes
    if state["seconds"] < alone:
        begin, end, lowest, factor = 0.0, alone, 0.05, 1.0
    else:
        begin, end, lowest, factor = alone, 60 * args.minutes, 0.0, args.vision_rate
    passed = state["seconds"] - begin
    left = 1 - passed / (end - begin)
    scale = max(lowest, min(1.0, (passed + 1) / args.warmup, left / args.decay))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for i, (group, rate) in enumerate(zip(groups, rates, strict=True)):
        group["lr"] = rate * scale * (factor if i == 0 else 1.0)


def train(args: argparse.Namespace) -> None:
    """Run the training loop and leave ``model.pt`` and ``log.jsonl`` in ``args.work``."""
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    reader = gguf.GGUFReader(model_path())
    tokenizer, text = read_tokenizer(reader), read_model(reader).train()
    config = VisionConfig()
    trainee, maker = Trainee(PictureModel(Vision(config), text)), Maker(tokenizer, config)
    optimizers = _optimizers(trainee, args)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "pictures": 0}
    if args.resume:
        saved = torch.load(args.resume, weights_only=True)
        kept = {n: w for n, w in saved["model"].items() if args.whole or "head." not in n}
        trainee.load_state_dict(kept, strict=args.whole)
        if not args.fresh:
            for optimizer, content in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(content)
            state = saved["state"]
    see, answer = trainee.see, trainee.answer
    if args.compile:
        see, answer = torch.compile(see), torch.compile(answer)
    parts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (("encoder", trainee.model.vision), ("language model", text))
    }
    print(parts, flush=True)

    def best(batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = trainee.model.hidden(
                batch.pictures, batch.tokens, batch.starts, batch.positions, batch.mask
            )
            return F.linear(hidden, text.token_embd.weight).argmax(-1)

    last, means = time.monotonic(), {"see": 0.0, "answer": 0.0}
    while state["seconds"] < 60 * args.minutes:
        alone = state["seconds"] < 60 * args.vision_minutes
        n = args.vision_pictures if alone else args.pictures
        batch = maker.batch(f"{args.seed}:{state['step']}", n, kind="count" if alone else None)
        _set_rates(optimizers, rates, state, args)
        with torch.autocast("cpu", torch.bfloat16):
            seen = see(batch.pictures, batch.things)
            losses = {"see": seen}
            if not alone:
                targets = batch.targets[batch.targets != IGNORED]
                weights = batch.weights[batch.targets != IGNORED]
                entropy = F.cross_entropy(answer(batch).float(), targets, reduction="none")
                losses["answer"] = (entropy * weights).sum()
        loss = losses["answer"] + args.see_weight * seen if not alone else seen
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        trainee.zero_grad()
        for name, value in losses.items():
            means[name] = 0.97 * (means[name] or value.item()) + 0.03 * value.item()
        state["step"] += 1
        state["pictures"] += n
        now = time.monotonic()
        state["seconds"], last = state["seconds"] + now - last, now
        if state["step"] % 20 == 0:
            log = {**state, **{k: round(v, 4) for k, v in means.items()}}
            with (work / "log.jsonl").open("a") as file:
                file.write(json.dumps(log) + "\n")
        if state["step"] % args.check_every == 0 or state["seconds"] >= 60 * args.minutes:
            saved = {
                "model": trainee.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "state": state,
            }
            torch.save(saved, work / "model.tmp")
            (work / "model.tmp").replace(work / "model.pt")
            report = {} if alone else heldout_accuracy(best, maker, args.check_items, 5)
            print(state, means, {k: round(v, 2) for k, v in report.items()}, flush=True)
            last = time.monotonic()


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and log")
    parser.add_argument("--minutes", type=float, default=60.0, help="the whole run")
    parser.add_argument("--vision-minutes", type=float, default=7.0, help="the encoder alone")
    parser.add_argument("--decay", type=float, default=0.5, help="the part with a falling rate")
    parser.add_argument("--warmup", type=float, default=20.0, help="seconds of a rising rate")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--muon-lr", type=float, default=4e-3)
    parser.add_argument("--text-rate", type=float, default=0.8, help="of the language model")
    parser.add_argument(
        "--vision-rate", type=float, default=0.3, help="of the encoder when both learn"
    )
    parser.add_argument("--see-weight", type=float, default=0.3)
    parser.add_argument("--pictures", type=int, default=20, help="per step")
    parser.add_argument("--vision-pictures", type=int, default=64, help="the encoder alone")
    parser.add_argument("--check-every", type=int, default=200)
    parser.add_argument("--check-items", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=20261201)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--resume", type=Path, help="a model.pt to go on from")
    parser.add_argument("--whole", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--fresh", action="store_true", help="resume the weights only")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
