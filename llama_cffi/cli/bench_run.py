"""Measure how fast a model evaluates and generates tokens; also run as a child process.

A test is timed like llama-bench's: random tokens, without tokenizing and sampling. The child reads
its jobs as JSON from argv, and writes a line of JSON for each result.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..binding import Library, Model

__all__ = ["main", "measure", "model_file", "test_name", "warns_of_wait"]

_LONG_WAIT = 0.1  # of the time of the threads
Job = Mapping[str, Any]


def main() -> None:
    """Run the jobs of argv."""
    from ..errors import LlamaError

    out = sys.stdout
    try:
        for result in measure(json.loads(sys.argv[1]), lambda message: _send(out, told=message)):
            _send(out, result=result)
    except LlamaError as e:
        _send(out, error=str(e))


def _send(out: Any, **message: Any) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def measure(jobs: Sequence[Job], tell: Callable[[str], object]) -> Iterator[dict[str, Any]]:
    """Run tests; yield the fields of llama-bench for each.

    Args:
        jobs: The parameters of each test.
        tell: Takes messages for a person.
    """
    from ..binding import Model

    loaded: tuple[object, Model] | None = None
    try:
        for number, job in enumerate(jobs, 1):
            key = (job["model"], json.dumps(job["model_options"], sort_keys=True))
            if loaded is None or loaded[0] != key:
                if loaded is not None:
                    loaded[1].close()
                loaded = key, Model(job["model"], **job["model_options"])
            tell(f"test {number}/{len(jobs)}: {test_name(job)}")
            yield _test(loaded[1], job)
    finally:
        if loaded is not None:
            loaded[1].close()


def test_name(job: Job) -> str:
    """Return llama-bench's name of a test, such as `pp512` or `tg128 @ d4096`."""
    parts = [f"pp{job['n_prompt']}"] if job["n_prompt"] else []
    parts += [f"tg{job['n_gen']}"] if job["n_gen"] else []
    return "+".join(parts) + (f" @ d{job['n_depth']}" if job["n_depth"] else "")


def _test(model: Model, job: Job) -> dict[str, Any]:
    """Run one test: a warm-up, then the repetitions."""
    from ..binding import Context
    from ..binding.processors import run_queue_waits
    from ..tuning.timing import generate, prefill

    n_prompt, n_gen, n_depth = job["n_prompt"], job["n_gen"], job["n_depth"]
    started = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    n_ctx = max(n_prompt + n_gen + n_depth, 32)
    options = {
        key: job[key]
        for key in ("n_batch", "n_ubatch", "n_threads", "flash_attn", "type_k", "type_v")
    }
    samples: list[int] = []
    with Context(model, n_ctx=n_ctx, **options) as context:
        if job["warmup"]:
            n_warm = min(n_prompt, context.n_batch) or 1
            prefill(context, n_warm, 0)
            generate(context, min(n_gen, 1), n_warm)
        waits, seconds = sum(run_queue_waits().values()), 0.0
        for _ in range(job["repetitions"]):
            context.memory.clear()
            prefill(context, n_depth, 0)
            context.synchronize()
            start = time.perf_counter_ns()
            prefill(context, n_prompt, n_depth)
            generate(context, n_gen, n_depth + n_prompt)
            context.synchronize()
            samples.append(time.perf_counter_ns() - start)
            seconds += samples[-1] / 1e9
        waited = sum(run_queue_waits().values()) - waits
        rates = [(n_prompt + n_gen) * 1e9 / ns for ns in samples]
        return {
            **_machine(model.library),
            "model_filename": str(model.path),
            "model_type": model.description,
            "model_size": model.size_bytes,
            "model_n_params": model.n_params,
            "n_batch": job["n_batch"],
            "n_ubatch": job["n_ubatch"],
            "n_threads": context.n_threads,
            "type_k": job["type_k"] or "f16",
            "type_v": job["type_v"] or "f16",
            "n_gpu_layers": job["model_options"]["n_gpu_layers"],
            "split_mode": job["model_options"].get("split_mode") or "layer",
            "main_gpu": job["model_options"].get("main_gpu", 0),
            "flash_attn": {True: "on", False: "off", None: "auto"}[job["flash_attn"]],
            "tensor_split": "/".join(map(str, job["model_options"].get("tensor_split") or [])),
            "n_prompt": n_prompt,
            "n_gen": n_gen,
            "n_depth": n_depth,
            "test_time": started,
            "avg_ns": round(statistics.fmean(samples)),
            "stddev_ns": round(statistics.stdev(samples)) if len(samples) > 1 else 0,
            "avg_ts": statistics.fmean(rates),
            "stddev_ts": statistics.stdev(rates) if len(rates) > 1 else 0.0,
            "samples_ns": samples,
            "samples_ts": rates,
            "waited": max(0.0, waited) / max(seconds * context.n_threads, 1e-9),
        }


def _machine(library: Library) -> dict[str, Any]:
    """Return the fields about build and machine."""
    build, devices = library.build, library.devices
    tag = build.tag or ""
    gpus = [d for d in devices if d.type not in ("cpu", "accel")]
    return {
        "build_commit": tag or "unknown",
        "build_number": int(tag[1:]) if tag[:1] == "b" and tag[1:].isdigit() else 0,
        "build": build.spec,
        "cpu_info": next((d.description for d in devices if d.type == "cpu"), ""),
        "gpu_info": ", ".join(d.description for d in gpus),
        "backends": ",".join(dict.fromkeys(d.name.rstrip("0123456789") for d in gpus)) or "CPU",
    }


def warns_of_wait(result: Mapping[str, Any]) -> bool:
    """Whether the threads of a test waited for processors so long that the numbers mislead."""
    return float(result["waited"]) >= _LONG_WAIT


def model_file(source: Any) -> str:
    """Return a path for a job."""
    return str(Path(source).resolve())
