"""A realistic workload.

Lengths: lognormal, with the mean and deviation of the logarithms in the conversations of Azure's
2023 trace (19,366 requests, github.com/Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv.csv;
published with Splitwise, https://arxiv.org/abs/2311.18677). Median prompt: about 760 tokens in the
fit, 1,020 in the trace; median answer: 151 and 129. Arrivals: Poisson, as in the evaluations of
vLLM and Sarathi-Serve. System prompts and priorities are not in the trace; they are assumptions.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

PROMPT = (6.633, 0.985)  # mean and deviation of the natural logarithm of the tokens
ANSWER = (5.019, 0.859)
MOST_PROMPT, MOST_ANSWER = 3000, 1000  # 1,000 is the longest of the trace
SYSTEM_PROMPTS = (600, 300, 200, 100)  # tokens; the first is the most frequent
SHARED = 0.6  # share of the requests with one of them
PRIORITIES = {-1: 0.1, 0: 0.8, 1: 0.1}


@dataclass(frozen=True)
class Job:
    """A future request.

    Attributes:
        at_s: Arrival time, in units of the mean time between arrivals.
        tokens: The prompt.
        n_answer: Number of tokens in the answer.
        priority: See `Request`.
    """

    at_s: float
    tokens: list[int]
    n_answer: int
    priority: int


def workload(n: int, seed: int = 1) -> list[Job]:
    """Return *n* jobs with one arrival per second on average; deterministic for a seed."""
    rng = random.Random(seed)
    systems = [list(range(i * 10_000, i * 10_000 + n)) for i, n in enumerate(SYSTEM_PROMPTS)]
    weights = [1 / (i + 1) for i in range(len(systems))]
    jobs, at_s = [], 0.0
    for number in range(n):
        at_s += rng.expovariate(1.0)
        n_prompt = _length(rng, PROMPT, MOST_PROMPT)
        system = rng.choices(systems, weights)[0] if rng.random() < SHARED else []
        # Unique tokens; at least eight after a system prompt.
        n_own = max(n_prompt - len(system), 8)
        first = 100_000 + number * 4096
        tokens = system + list(range(first, first + n_own))
        n_answer = _length(rng, ANSWER, MOST_ANSWER)
        priority = rng.choices([*PRIORITIES], [*PRIORITIES.values()])[0]
        jobs.append(Job(at_s, tokens, n_answer, priority))
    return jobs


def _length(rng: random.Random, distribution: tuple[float, float], most: int) -> int:
    mean, deviation = distribution
    return min(max(round(math.exp(rng.gauss(mean, deviation))), 1), most)
