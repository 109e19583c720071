"""A real Ray cluster on this machine: Ray Data over two actors, Ray Serve, and docs/ray.md.

`nox -s ray` installs Ray and runs this; the name keeps it out of the ordinary run. Ray prints,
warns and starts a dozen processes, so everything happens in child processes of the tests.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from conftest import Child

ROOT = Path(__file__).parents[1]
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
HEAD = """
import json, logging, os
from pathlib import Path
import ray
from llama_cffi import demo

ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.WARNING)

def tell(found):
    Path(os.environ["FOLDER"], "found.json").write_text(json.dumps(found))
"""
DATA = (
    HEAD
    + """
import numpy as np
from llama_cffi.ray import LlamaPredictor

class Seen(LlamaPredictor):
    '''Says in which process it was, how often it was made, and that it was closed.'''

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
        Path(os.environ["FOLDER"], str(os.getpid())).write_text("closed")

ray.data.DataContext.get_current().execution_options.preserve_order = True
path = str(demo.model_path())
config = {"n_ctx": 256, "n_threads": 1}

def run(ds, cls=LlamaPredictor, task="chat", size=1, batch_format="default", batch_size=8, **more):
    arguments = {"model_path": path, "task": task, **config, **more}
    return ds.map_batches(
        cls, fn_constructor_kwargs=arguments, batch_size=batch_size, batch_format=batch_format,
        compute=ray.data.ActorPoolStrategy(size=size),
    ).take_all()
"""
)


def run(child: Child, code: str, folder: Path) -> Any:
    """Return what *code* tells; what Ray prints stands in the way of more."""
    env = {**QUIET, "FOLDER": str(folder), "PYTHONPATH": str(ROOT / "examples")}
    done = child(code, timeout=300, **env)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


def test_two_actors_answer_64_prompts_in_order(child: Child, tmp_path: Path) -> None:
    code = (
        DATA
        + """
items = [{"prompt": f"What is {a} + {b}?", "sum": str(a + b)}
         for a in range(11, 19) for b in range(20, 28)]
rows = run(ray.data.from_items(items, override_num_blocks=8), Seen, size=2, details=True,
           on_error="column", options={"temperature": 0, "seed": 1, "stop": ["never"]})
assert [(row["prompt"], row["sum"]) for row in rows] == [(i["prompt"], i["sum"]) for i in items]
tell(rows)
ray.shutdown()
"""
    )
    rows = run(child, code, tmp_path)
    assert len(rows) == 64
    assert [row["text"] for row in rows] == [row["sum"] for row in rows]
    assert {row["finish_reason"] for row in rows} == {"stop"}
    assert {row["error"] for row in rows} == {None}
    assert len({row["pid"] for row in rows}) == 2, "one actor did everything"
    assert {row["n_made"] for row in rows} == {1}, "a model was loaded for a batch"
    assert {(row["most"], row["n"]) for row in rows} == {(8, 8)}, "a batch was not run at once"


def test_formats_conversations_json_vectors_and_errors(child: Child, tmp_path: Path) -> None:
    code = (
        DATA
        + """
cold = {"temperature": 0}
turns = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 11 + 20?"}],
    [{"role": "user", "content": "What is 12 + 20?", "name": "me"}],
]
ds = ray.data.from_items([{"turns": each, "id": i} for i, each in enumerate(turns * 4)])
found = {}
for batch_format in ("numpy", "pandas", "pyarrow"):
    rows = run(ds, input_column="turns", batch_format=batch_format, options=cold, details=True,
               on_error="column")
    assert [row["id"] for row in rows] == list(range(8))
    found[batch_format] = [[r["text"], r["finish_reason"], r["error"]] for r in rows]
texts = ray.data.from_items([{"prompt": text} for text in ("a", "b", "c " * 300, "d")])
schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
          "additionalProperties": False}
form = {"type": "json_object", "schema": schema}
parsed = run(texts, parse=True, on_error="column", options={**cold, "response_format": form})
found["parsed"] = [[row["text"], row["error"]] for row in parsed]
for batch_format in ("numpy", "pandas", "pyarrow"):
    vectors = run(texts, task="embed", batch_format=batch_format)
    found["vectors " + batch_format] = [len(row["embedding"]) for row in vectors]
try:
    run(texts, options=cold)
except Exception as error:
    found["raised"] = [type(error).__name__, str(error)]
tell(found)
ray.shutdown()
"""
    )
    found = run(child, code, tmp_path)
    sums = [["31", "stop", None], ["32", "stop", None]] * 4
    assert [found[name] for name in ("numpy", "pandas", "pyarrow")] == [sums] * 3
    values, errors = zip(*found["parsed"], strict=True)
    assert [value and value["a"] in (1, 2) for value in values] == [True, True, None, True]
    assert [bool(error) for error in errors] == [False, False, True, False]
    assert "no room" in errors[2]
    widths = [found[f"vectors {name}"] for name in ("numpy", "pandas", "pyarrow")]
    assert widths == [[widths[0][0]] * 4] * 3
    assert "row 2 of the batch" in found["raised"][1]
    assert "no room" in found["raised"][1]


def test_actors_close_their_models(child: Child, tmp_path: Path) -> None:
    code = (
        DATA
        + """
import time
rows = run(ray.data.from_items([{"prompt": "What is 11 + 20?"}] * 4), Seen, size=1)
pid, folder = str(rows[0]["pid"]), os.environ["FOLDER"]
deadline = time.monotonic() + 60
while not Path(folder, pid).exists() and time.monotonic() < deadline:
    time.sleep(0.1)
tell([pid, os.listdir(folder)])
ray.shutdown()
"""
    )
    pid, closed = run(child, code, tmp_path)
    assert closed == [pid]


def test_serve_streams_and_ends_what_clients_leave(child: Child, tmp_path: Path) -> None:
    code = (
        HEAD
        + """
import http.client, socket, time
from concurrent.futures import ThreadPoolExecutor
from ray import serve
import ray_serve

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
serve.start(http_options={"host": "127.0.0.1", "port": port})
handle = serve.run(ray_serve.app)

def post(asked):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/", json.dumps(asked) if isinstance(asked, dict) else asked)
    return connection.getresponse()

def conversation(question, **more):
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, **more}

def ask(n):
    response = json.load(post(conversation(f"What is {n} + 20?")))
    return response["choices"][0]["message"]["content"]

with ThreadPoolExecutor(16) as threads:
    many = list(threads.map(ask, range(11, 43)))
response = post(conversation("What is 11 + 20?", stream=True))
events = [line[6:].strip() for line in response if line.startswith(b"data: ")]
chunks = [json.loads(event) for event in events[:-1]]
pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
wrong = [conversation("a", max_tokens=0), {"messages": 3}, "{", "[]", {}]
wrong = [post(each) for each in wrong]
handled = list(handle.options(stream=True).text.remote("One, two,", 8))
before = handle.stats.remote().result()

schema = {"type": "object", "properties": {"a": {"type": "string", "minLength": 1900}},
          "required": ["a"], "additionalProperties": False}
form = {"type": "json_object", "schema": schema}
left = post(conversation("Hello", stream=True, response_format=form))
first = left.readline()
left.close()
deadline = time.monotonic() + 60
while (stats := handle.stats.remote().result()).n_running and time.monotonic() < deadline:
    time.sleep(0.1)
tell({
    "many": many, "type": response.headers["content-type"], "end": events[-1].decode(),
    "pieces": pieces, "wrong": [w.status for w in wrong],
    "messages": [json.load(w)["error"]["message"] for w in wrong], "handled": handled,
    "first": first.decode(), "cancelled": [before.n_cancelled, stats.n_cancelled],
})
serve.shutdown()
ray.shutdown()
"""
    )
    found = run(child, code, tmp_path)
    assert found["many"] == [str(n + 20) for n in range(11, 43)]
    assert found["type"].startswith("text/event-stream")
    assert found["end"] == "[DONE]"
    assert "".join(found["pieces"]) == "31"
    assert found["wrong"] == [400] * 5
    assert "max_tokens" in found["messages"][0]
    assert len(found["handled"]) > 1
    assert found["first"].startswith("data: {")
    assert found["cancelled"] == [0, 1]


def test_the_page_runs(child: Child, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "ray.md").read_text("utf-8")
    blocks = re.findall(r"^```py(?:thon)?\n(.*?)^```$", page, re.S | re.M)
    assert len(blocks) > 2
    blocks.append(
        "import os, pathlib; pathlib.Path(os.environ['FOLDER'], 'found.json').write_text('true')"
    )
    assert run(child, "\n".join(blocks), tmp_path)
