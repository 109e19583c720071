"""Projectors and pictures are freed without the garbage collector; encoder threads end."""

from __future__ import annotations

import os

import pytest
from multimodal.conftest import Files
from support.children import Child

PREPARE = """
import gc, logging, threading, time
gc.disable()
import numpy as np
from llama_cffi import *
from llama_cffi.binding.native_object import _alive

model, picture = {model!r}, np.random.default_rng(1).integers(0, 255, (16, 16, 3), dtype=np.uint8)
chat = [{{"role": "user", "content": [{{"type": "image", "image": picture}},
                                      {{"type": "text", "text": "what?"}}]}}]

def rest():
    return sorted(type(native).__name__ for native in list(_alive))

def encoders():
    return [t for t in threading.enumerate() if t.name.startswith("llama_cffi-en")]

def wait():
    end = time.monotonic() + 20
    while (rest() or encoders()) and time.monotonic() < end:
        time.sleep(0.002)
    print(rest(), encoders()) if rest() or encoders() else None

def slow(engine):
    projector = engine.media.projector
    encode = projector.encode
    def later(chunk, encode=type(projector).encode, of=None):
        time.sleep(0.3)
        return encode(chunk.projector, chunk)
    projector.encode = later
    return engine
"""

USES = {
    "Llama": "Llama(model, n_ctx=256).create_chat_completion(chat, max_tokens=3)",
    "Llama with n_parallel": """
llm = Llama(model, n_ctx=256, n_parallel=2)
llm.create_chat_completion(chat, max_tokens=3)
chunks = llm.create_chat_completion(chat, max_tokens=100, stream=True)
next(chunks)
""",
    "state": """
llm = Llama(model, n_ctx=256)
llm.create_chat_completion(chat, max_tokens=3)
llm.set_state(llm.get_state())
""",
    "store": """
engine = InferenceEngine(model, 1, 512, cache_ram=64)
for prompt in (engine.tokenize_chat(chat), "x" * 100, engine.tokenize_chat(chat)):
    engine.generate(prompt, 3)
""",
    "in flight": """
engine = slow(InferenceEngine(model, 2, 256))
handles = [engine.submit(engine.tokenize_chat(chat), 5) for _ in range(3)]
""",
    "cancelled": """
engine = slow(InferenceEngine(model, 2, 256))
handle = engine.submit(engine.tokenize_chat(chat), 5)
handle.cancel()
""",
    "an encoder that raises": """
engine = InferenceEngine(model, 2, 256)
def fail(chunk):
    raise KeyError("mine")
engine.media.projector.encode = fail
try:
    engine.generate(engine.tokenize_chat(chat), 5)
except KeyError:
    pass
""",
    "paused": """
engine = InferenceEngine(model, 2, 256)
engine.pause()
handle = engine.submit(engine.tokenize_chat(chat), 5)
while not engine.media.cache.n_encoded:
    time.sleep(0.002)
""",
    "never started": """
engine = InferenceEngine(model, 2, 256, start=False)
handle = engine.submit(engine.tokenize_chat(chat), 5)
engine.step()
""",
}


def run(child: Child, files: dict[str, Files], body: str) -> None:
    code = PREPARE.format(model=str(files["qwen2vl_merger"].model)) + body
    done = child(code, timeout=120, LLAMA_CFFI_LIB=os.environ["LLAMA_CFFI_LIB"])
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_what_is_dropped_is_freed(child: Child, files: dict[str, Files]) -> None:
    body = ["logging.disable()"]
    for name, use in USES.items():
        lines = "\n    ".join(use.strip().splitlines())
        body.append(
            f"def use():\n    {lines}\nuse()\nwait()\nif rest(): print({name!r})\ngc.collect()"
        )
    run(child, files, "\n".join(body))


def test_an_idle_encoder_keeps_nothing(child: Child, files: dict[str, Files]) -> None:
    """Its thread waits for the next picture, and refers to no earlier one."""
    run(
        child,
        files,
        """
logging.disable()
engine = InferenceEngine(model, 2, 256, cache_ram=0)
engine.generate(engine.tokenize_chat(chat), 3)
engine.media._chunked.clear()
engine.cache_clear()
engine.generate("x", 3)
assert rest().count("MediaChunk") == 0, rest()
""",
    )


@pytest.mark.parametrize("keeps", ["engine = make()", "make().close()"])
def test_the_interpreter_ends_while_a_picture_is_encoded(
    child: Child, files: dict[str, Files], keeps: str
) -> None:
    run(
        child,
        files,
        f"""
logging.disable()
def make():
    engine = slow(InferenceEngine(model, 2, 1024))
    for _ in range(3):
        engine.submit(engine.tokenize_chat(chat), 900, ignore_eos=True)
    time.sleep(0.1)
    return engine

{keeps}
""",
    )
