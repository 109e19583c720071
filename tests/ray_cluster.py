"""A real Ray cluster on this machine: docs/ray.md, Ray Data over two actors, Ray Serve.

`nox -s ray` installs Ray and runs this; the name keeps it out of the ordinary run. Ray prints,
warns and starts a dozen processes, so one child process does everything in one cluster, which the
page starts, and writes down what it finds.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from support.children import Child

ROOT = Path(__file__).parents[1]
Found = dict[str, Any]

HELPERS = """
import json, os, time
from pathlib import Path
import numpy as np
import ray
from llama_cffi import demo
from llama_cffi.ray import LlamaPredictor

folder, found = Path(os.environ["FOLDER"]), {}
context = ray.data.DataContext.get_current()
context.execution_options.preserve_order = True
context.wait_for_min_actors_s = 300  # else the first that is there may do everything
schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
          "additionalProperties": False}
form = {"type": "json_object", "schema": schema}

def run(ds, cls=LlamaPredictor, task="chat", size=1, batch_format="default", **arguments):
    arguments = {"model_path": demo.model_path(), "task": task, "n_ctx": 256, "n_threads": 1,
                 **arguments}
    return ds.map_batches(
        cls, fn_constructor_kwargs=arguments, batch_size=8, batch_format=batch_format,
        compute=ray.data.ActorPoolStrategy(size=size),
    ).take_all()
"""

TWO_ACTORS = """
class Seen(LlamaPredictor):
    '''Says in which process it was and how often it was made; leaves a note when it closes.'''

    n_made = 0

    def __init__(self, *args, **options):
        Seen.n_made += 1
        super().__init__(*args, **options)

    def __call__(self, batch):
        found = super().__call__(batch)
        n = len(found["text"])
        most = max(moment.n_running for moment in self.llm.engine.timeline)
        seen = {"pid": os.getpid(), "n_made": Seen.n_made, "most": most, "n": n}
        return {**found, **{name: np.full(n, value) for name, value in seen.items()}}

    def close(self):
        super().close()
        Path(os.environ["FOLDER"], f"{os.getpid()}.closed").touch()

items = [{"prompt": f"What is {a} + {b}?", "sum": str(a + b)}
         for a in range(11, 19) for b in range(20, 28)]
rows = run(ray.data.from_items(items, override_num_blocks=8), Seen, size=2, details=True,
           on_error="column", options={"temperature": 0, "seed": 1, "stop": ["never"]})
found["two actors"] = rows
found["in order"] = [row["prompt"] for row in rows] == [item["prompt"] for item in items]
deadline = time.monotonic() + 60
while len(closed := list(folder.glob("*.closed"))) < 2 and time.monotonic() < deadline:
    time.sleep(0.1)
found["closed"] = [int(path.stem) for path in closed]
"""

FORMATS = """
turns = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 11 + 20?"}],
    [{"role": "user", "content": "What is 12 + 20?", "name": "me"}],
]
talks = ray.data.from_items([{"turns": each, "id": i} for i, each in enumerate(turns * 4)])
texts = ray.data.from_items([{"prompt": text} for text in ("a", "b", "c " * 300, "d")])
cold = {"temperature": 0}
for batch_format in ("numpy", "pandas", "pyarrow"):
    rows = run(talks, input_column="turns", batch_format=batch_format, options=cold, details=True,
               on_error="column")
    found["talks " + batch_format] = [[r["id"], r["text"], r["finish_reason"], r["error"]]
                                      for r in rows]
    rows = run(texts, task="embed", batch_format=batch_format)
    found["vectors " + batch_format] = [len(row["embedding"]) for row in rows]
rows = run(texts, parse=True, on_error="column", options={**cold, "response_format": form})
found["parsed"] = [[row["text"], row["error"]] for row in rows]
try:
    run(texts, options=cold)
except Exception as error:
    found["raised"] = str(error)
"""

SERVE = """
import http.client, socket
from concurrent.futures import ThreadPoolExecutor
from ray import serve
import ray_serve

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
serve.start(http_options={"host": "127.0.0.1", "port": port})
handle = serve.run(ray_serve.app)

def post(asked):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/", asked if isinstance(asked, str) else json.dumps(asked))
    return connection.getresponse()

def conversation(question, **more):
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, **more}

def ask(n):
    response = json.load(post(conversation(f"What is {n} + 20?")))
    return response["choices"][0]["message"]["content"]

with ThreadPoolExecutor(16) as threads:
    found["many"] = list(threads.map(ask, range(11, 43)))
response = post(conversation("What is 11 + 20?", stream=True))
found["type"] = response.headers["content-type"]
found["events"] = [line[6:].decode().strip() for line in response if line.startswith(b"data: ")]
wrong = [post(each) for each in (conversation("a", max_tokens=0), {"messages": 3}, "{", "[]", {})]
found["wrong"] = [[each.status, json.load(each)["error"]["message"]] for each in wrong]
found["handled"] = list(handle.options(stream=True).text.remote("One, two,", 8))

before = handle.stats.remote().result()
long = {"type": "string", "minLength": 1900}
form = {"type": "json_object", "schema": {**schema, "properties": {"a": long}}}
left = post(conversation("Hello", stream=True, response_format=form))
found["first"] = left.readline().decode()
left.close()
deadline = time.monotonic() + 60
while (stats := handle.stats.remote().result()).n_running and time.monotonic() < deadline:
    time.sleep(0.1)
found["cancelled"] = stats.n_cancelled - before.n_cancelled
serve.shutdown()
"""

END = """
(folder / "found.json").write_text(json.dumps(found))
ray.shutdown()
"""


@pytest.fixture(scope="module")
def found(child: Child, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What one process found out."""
    folder = tmp_path_factory.mktemp("found")
    page = (ROOT / "docs" / "ray.md").read_text("utf-8")
    blocks = re.findall(r"^```py(?:thon)?\n(.*?)^```$", page, re.S | re.M)
    assert len(blocks) == 3
    done = child(
        "\n".join(map(textwrap.dedent, [*blocks, HELPERS, TWO_ACTORS, FORMATS, SERVE, END])),
        timeout=900,
        RAY_USAGE_STATS_ENABLED="0",
        FOLDER=str(folder),
        PYTHONPATH=str(ROOT / "examples"),
    )
    assert done.returncode == 0, done.stderr
    found: Found = json.loads((folder / "found.json").read_text())
    return {**found, "printed": done.stdout}


def test_the_page_runs(found: Found) -> None:
    assert "['42' '42']" in found["printed"]
    assert "'text': '36'" in found["printed"]


def test_two_actors_answer_64_prompts_in_order(found: Found) -> None:
    rows = found["two actors"]
    assert len(rows) == 64
    assert found["in order"]
    assert [row["text"] for row in rows] == [row["sum"] for row in rows]
    assert {row["finish_reason"] for row in rows} == {"stop"}
    assert {row["error"] for row in rows} == {None}
    assert len({row["pid"] for row in rows}) == 2, "one actor did everything"
    assert {row["n_made"] for row in rows} == {1}, "a model was loaded for a batch"
    assert {row["n"] for row in rows} == {8}
    assert min(row["most"] for row in rows) > 2, "a batch was answered row by row"


def test_actors_close_their_models(found: Found) -> None:
    assert sorted(found["closed"]) == sorted({row["pid"] for row in found["two actors"]})


@pytest.mark.parametrize("batch_format", ["numpy", "pandas", "pyarrow"])
def test_every_format(found: Found, batch_format: str) -> None:
    sums = [[i, "32" if i % 2 else "31", "stop", None] for i in range(8)]
    assert found[f"talks {batch_format}"] == sums
    assert found[f"vectors {batch_format}"] == [found["vectors numpy"][0]] * 4


def test_json_and_errors_of_rows(found: Found) -> None:
    values, errors = zip(*found["parsed"], strict=True)
    assert [value and value["a"] in (1, 2) for value in values] == [True, True, None, True]
    assert [bool(error) for error in errors] == [False, False, True, False]
    assert "no room" in errors[2]
    assert "row 2 of the batch" in found["raised"]
    assert "no room" in found["raised"]


def test_serve_answers_many_and_streams(found: Found) -> None:
    assert found["many"] == [str(n + 20) for n in range(11, 43)]
    assert found["type"].startswith("text/event-stream")
    *chunks, end = found["events"]
    assert end == "[DONE]"
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == "31"
    assert len(found["handled"]) > 1


def test_serve_refuses_what_is_wrong(found: Found) -> None:
    assert [status for status, _ in found["wrong"]] == [400] * 5
    assert "max_tokens" in found["wrong"][0][1]


def test_serve_ends_what_a_client_leaves(found: Found) -> None:
    assert found["first"].startswith("data: {")
    assert found["cancelled"] == 1
