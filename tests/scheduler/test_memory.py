"""Ten thousand requests leak neither bytes, blocks, handles nor sampler chains."""

from __future__ import annotations

import json
from pathlib import Path

from support.children import Child
from support.measuring import MEASURE

CODE = (
    MEASURE
    + """
import json, random
from llama_cffi import InferenceEngine, LlamaGrammar

rng = random.Random(0)
digits = LlamaGrammar.from_regex("[0-9]{3}")
engine = InferenceEngine(sys.argv[1], 16, 64, n_threads=1, max_waiting=100, n_kv_tokens=1024)
kinds = [
    {}, {"temperature": 0}, {"callback": len}, {"stop": ["q"]}, {"structured": digits},
    {"timeout_s": 0.0}, {"callback": lambda text: 1 / 0}, {"temperature": 1.0, "seed": 3},
]
counts = []
for n in range(11):
    for begin in range(0, 1000, 100):
        handles = []
        for i in range(begin, begin + 100):
            prompt = [65 + rng.randrange(20) for _ in range(1 + i % 12)]
            handles.append(engine.submit(prompt, 3, wait=True, **kinds[i % len(kinds)]))
            if i % 9 == 0:
                handles[-1].cancel()
        for handle in handles:
            handle.future.exception(60)
    del handles, handle
    engine.cache_clear()
    engine.generate([65], 1)
    engine._core.timeline.clear()  # they keep 10,000 steps, and those of ten seconds
    engine._core.metrics._rate.clear()
    counts.append(measure())
engine.cache_clear()
engine.generate([65], 1, temperature=0)
stats, cache = engine.stats, engine.stats.cache
engine.cache_clear()
engine.generate([65], 1, temperature=0)
assert (engine.active_requests, engine._core.handles) == ([], {})
assert cache.n_free >= cache.n_blocks - 1, cache
assert engine._core._chains._n_idle <= 16
ended = [stats.n_finished, stats.n_failed, stats.n_cancelled]
assert sum(ended) == 11_000 + 12 and min(ended) > 500, ended
engine.shutdown()
print(json.dumps([counts[0], counts[-1]]))
"""
)


def test_ten_thousand_requests(child: Child, tiny_model: Path) -> None:
    result = child(CODE, tiny_model)
    assert (result.returncode, result.stderr) == (0, "")
    first, last = json.loads(result.stdout)
    growth = {name: last[name] - first[name] for name in first}
    # One leaked object per request would be 10,000 blocks. Metrics keep 4 times of 1,000 requests.
    assert growth["blocks"] < 2_500, growth
    assert growth["held"] < 300_000, growth
    assert growth["rss_kb"] < 6_000, growth
