"""Memory stays flat: bytes allocated by malloc, Python's blocks, and resident memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.measuring import MEASURE

CODE = (
    MEASURE
    + """
import json
from llama_cffi import Engine

engine = Engine(sys.argv[1], n_ctx=256, n_threads=1, context_policy="shift")
bias = {256: -99, 258: -99}
options = json.loads(sys.argv[2])
counts = []
for i, piece in enumerate(engine.stream("x", "", 11_000, logit_bias=bias, stop=["never this"],
                                        json_stop=(), **options)):
    n = engine.stats.n_generated
    if n >= 1000 * (len(counts) + 1):
        counts.append(measure())
assert engine.stats.n_generated == 11_000
print(json.dumps([counts[0], counts[-1]]))
"""
)


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"seed": 1, "frequency_penalty": 0.1}], ids=["greedy", "chain"]
)
def test_ten_thousand_tokens(
    child: Child, tiny_model: Path, options: dict[str, object], build: str
) -> None:
    result = child(CODE, tiny_model, json.dumps(options), LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    first, last = json.loads(result.stdout)
    growth = {name: last[name] - first[name] for name in first}
    # The answer grows by one byte per token. One leaked object per token would be 10,000 blocks,
    # and one leaked malloc of 16 bytes 320,000 bytes.
    assert growth["held"] < 64_000, growth
    assert growth["blocks"] < 500, growth
    assert growth["rss_kb"] < 2_000, growth
