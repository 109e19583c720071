"""The features of llama-cpp-nanobind: state, cache, adapters, embeddings, families, utilities."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from lines import MODEL, QUESTION, line, refused
from nanobind import GREEDY, STORY, SUM, content, load, story

import llama_cffi
from llama_cffi import ContextOverflowError, Llama, LlamaConfig, UnifiedLLM, ValidationError


def continue_cached(llm: Llama, prompt: str) -> tuple[str, int]:
    """Return the greedy continuation, and how many prompt tokens were cached."""
    text = llm.generate(prompt, 24)
    return text, llm.engine.stats.n_reused


@contextmanager
def folder() -> Iterator[Path]:
    """Provide a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=100,
    )


@line("nanobind", "save_state, load_state, get_state, set_state: correct positions after loading")
def _() -> None:
    with load(sampling=GREEDY) as llm, folder() as where:
        prompt = story(llm)
        expected = llm.generate(prompt, 24)
        state = llm.get_state()
        held = llm.save_state(where / "state")
        assert held is None
        last = llm.kv_cache_seq_pos_max(0)
        for back in (
            lambda: llm.set_state(state),
            lambda: llm.load_state(where / "state"),
            lambda: llm.load_state(str(where / "state")),
        ):
            llm.kv_cache_clear()
            assert llm.kv_cache_seq_pos_max(0) == -1
            assert back() == last + 1  # its number of tokens
            assert llm.kv_cache_seq_pos_max(0) == last
            n_prompt = llm.n_tokens(prompt) and len(llm.tokenize(prompt, special=True))
            assert continue_cached(llm, prompt) == (expected, n_prompt - 1)
        with load(sampling=GREEDY) as other:
            assert other.set_state(state) == last + 1
            assert other.generate(prompt, 24) == expected
            assert other.engine.stats.n_reused > 0


@line("nanobind", "correct positions after kv_cache_seq_rm, keep, add, cp on sequence 0")
def _() -> None:
    with load(sampling=GREEDY, n_seq_max=2) as llm:
        prompt = story(llm)
        expected = llm.generate(prompt, 24)
        n_prompt = len(llm.tokenize(prompt, special=True))
        last = llm.kv_cache_seq_pos_max(0)

        def shift() -> None:  # remove some positions and shift the rest
            llm.kv_cache_seq_rm(0, 5, 9)
            llm.kv_cache_seq_add(0, 9, -1, -4)
            assert llm.kv_cache_seq_pos_max(0) == last - 4

        for change, reused in (
            (lambda: llm.kv_cache_seq_rm(0, 6, -1), 6),
            (lambda: llm.kv_cache_seq_rm(0, 3, 8), 3),
            (lambda: llm.kv_cache_seq_rm(0), 0),
            (lambda: llm.kv_cache_seq_rm(-1), 0),
            (shift, 5),
            (lambda: llm.kv_cache_seq_add(0, 4, -1, 3), 4),
            (lambda: llm.kv_cache_seq_keep(0), n_prompt - 1),
            (lambda: llm.kv_cache_seq_cp(0, 1), n_prompt - 1),
            (lambda: llm.kv_cache_seq_rm(1), n_prompt - 1),
            (lambda: llm.kv_cache_seq_cp(1, 0), 0),
            (lambda: llm.kv_cache_seq_keep(1), 0),
        ):
            llm.kv_cache_clear()
            assert llm.generate(prompt, 24) == expected
            change()
            assert continue_cached(llm, prompt) == (expected, reused)


@line("nanobind", "reset_kv_cache=False continues the session: only the new text is decoded")
def _() -> None:
    with load(sampling=GREEDY) as llm:
        prompt = story(llm)
        llm.generate(prompt, 10, reset_kv_cache=True)
        assert llm.engine.stats.n_reused == 0
        n_held = llm.kv_cache_seq_pos_max() + 1
        llm.generate(" And then", 10, reset_kv_cache=False)
        assert llm.engine.stats.n_reused == n_held
        assert llm.engine.stats.n_prefilled < 8
        assert llm.kv_cache_seq_pos_max() > n_held
        # Conversations do so by default.
        turns = [*STORY, {"role": "assistant", "content": "No."}, *SUM]
        for messages in (STORY, turns):
            answer = llm.create_chat_completion(messages, max_tokens=4, temperature=0)
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= len(llm.chat.renderer.render(STORY)[0]) - 1


@line("nanobind", "kv_cache_clear, also UnifiedLLM's; reset")
def _() -> None:
    with UnifiedLLM(MODEL, n_ctx=512, n_threads=1) as llm:
        for clear in (llm.kv_cache_clear, llm.llm.kv_cache_clear, llm.llm.reset):
            assert llm.generate(QUESTION, temperature=0) == "42"
            assert llm.llm.kv_cache_seq_pos_max(0) > 0
            clear()
            assert llm.llm.kv_cache_seq_pos_max(0) == -1


@line("nanobind", "load_lora, remove_lora, clear_lora; adapters stay active after reset()")
def _() -> None:
    def write_lora(path: Path, seed: int) -> Path:
        rng = np.random.default_rng(seed)
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 4.0)
        for part, shape in (("lora_a", (4, 192)), ("lora_b", (192, 4))):
            data = rng.normal(size=shape).astype(np.float32)
            writer.add_tensor(f"blk.0.attn_output.weight.{part}", data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    with load(sampling=GREEDY) as llm, folder() as where:
        one, two = (write_lora(where / f"{i}.gguf", i) for i in range(2))
        prompt = story(llm)

        def logits() -> Any:
            llm.generate(prompt, 1)
            return llm.engine.context.logits()

        plain = logits()
        adapter = llm.load_lora(str(one), scale=1.0)
        with_one = logits()
        assert abs(with_one - plain).max() > 0.1
        llm.reset()
        np.testing.assert_allclose(logits(), with_one, atol=1e-4)
        llm.load_lora(two)
        assert abs(logits() - with_one).max() > 0.1
        llm.remove_lora(two)
        np.testing.assert_allclose(logits(), with_one, atol=1e-4)
        llm.remove_lora(adapter)
        np.testing.assert_allclose(logits(), plain, atol=1e-4)
        llm.load_lora(one)
        llm.load_lora(two)
        llm.clear_lora()
        np.testing.assert_allclose(logits(), plain, atol=1e-4)


@line("nanobind", "embed, create_embedding[_async]; an error without embeddings=True")
def _() -> None:
    with Llama(MODEL, LlamaConfig(embeddings=True, n_ctx=512, n_threads=1)) as llm:
        vector = llm.embed("embedding me softly")
        assert abs(sum(x * x for x in vector) - 1) < 1e-3
        answer = llm.create_embedding(["Hello world", "embedding me softly"])
        assert answer["object"] == "list"
        assert [row["object"] for row in answer["data"]] == ["embedding"] * 2
        np.testing.assert_allclose(answer["data"][1]["embedding"], vector, atol=1e-5)
        later = asyncio.run(llm.create_embedding_async("embedding me softly"))
        np.testing.assert_allclose(later["data"][0]["embedding"], vector, atol=1e-5)
        assert content(llm.create_chat_completion(SUM, temperature=0)) == "42"
    with load() as llm:
        assert "embeddings=True" in refused(ValidationError, lambda: llm.embed("x"))
        assert "embeddings=True" in refused(ValidationError, lambda: llm.create_embedding("x"))


@line("nanobind", "perf, perf_reset, print_system_info")
def _() -> None:
    with load(sampling=GREEDY) as llm:
        llm.generate(story(llm), 20)
        perf = llm.perf()
        assert perf.n_prompt > 5
        assert perf.n_generated >= 10
        assert perf["t_eval_ms"] == perf.generation_ms > 0
        llm.perf_reset()
        assert llm.perf().generation_ms == 0
    assert " = 1" in llama_cffi.print_system_info()


@line("nanobind", "set_log_level, disable_logging, reset_logging; llama.cpp logs to `logging`")
def _() -> None:
    native, seen = logging.getLogger("llama_cffi.native"), []
    handler = logging.Handler()
    handler.emit = seen.append  # type: ignore[method-assign]
    native.addHandler(handler)
    try:

        def n_messages() -> int:
            seen.clear()
            load().close()
            return len(seen)

        llama_cffi.set_log_level("debug")
        assert n_messages() > 10
        llama_cffi.set_log_level("error")
        assert n_messages() == 0
        llama_cffi.set_log_level(logging.DEBUG)
        llama_cffi.disable_logging()
        assert n_messages() == 0
        llama_cffi.reset_logging()
        native.parent.setLevel("INFO")  # type: ignore[union-attr]
        assert n_messages() > 10
    finally:
        native.parent.setLevel("NOTSET")  # type: ignore[union-attr]
        llama_cffi.reset_logging()
        native.removeHandler(handler)


@line(
    "nanobind", "shutdown(): closes all instances, can be called twice, no race with running calls"
)
def _() -> None:
    code = f"""
import threading, time
import llama_cffi
every = [llama_cffi.Llama({str(MODEL)!r}, n_ctx=512, n_threads=1) for _ in range(3)]
errors, started = [], threading.Barrier(10)

def work(llm):
    started.wait()
    try:
        while True:
            llm.generate("Once upon a time", 300, temperature=1.5)
    except llama_cffi.ValidationError as e:
        errors.append(str(e))

threads = [threading.Thread(target=work, args=(llm,)) for llm in every * 3]
for thread in threads:
    thread.start()
started.wait()
time.sleep(0.2)
closers = [threading.Thread(target=llama_cffi.shutdown) for _ in range(4)]
for thread in closers:
    thread.start()
llama_cffi.shutdown()
for thread in threads + closers:
    thread.join(30)
assert all("closed" in e for e in errors), errors
assert all(llm.model.closed for llm in every)
print(len(errors))
llama_cffi.shutdown()
again = llama_cffi.Llama({str(MODEL)!r}, n_ctx=512, n_threads=1)
assert again.generate("x", 2) is not None
"""
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "9\n", ""), done


@line("nanobind", "UnifiedLLM(path).family.name from the file name (here qwen with version 3)")
def _() -> None:
    data = MODEL.read_bytes()
    assert data.count(b"general.name") == 1
    nameless = data.replace(b"general.name", b"general.eman")  # so that the file name decides
    names = {
        "Qwen3-8B-Q6_K.gguf": ("qwen", "3"),
        "Qwen3-30B-A3B-Instruct-2507-Q4_K_S.gguf": ("qwen", "3-instruct"),
        "Qwen3-4B-Thinking-2507-Q8_0.gguf": ("qwen", "3-thinking"),
        "gemma-3-12b-it-Q4_K_M.gguf": ("gemma", "3"),
        "Mistral-7B-Instruct-v0.3-Q4_K_M.gguf": ("mistral", None),
        "gpt-oss-20b-mxfp4.gguf": ("gpt-oss", None),
        "phi-4-Q4_K_M.gguf": ("phi", "4"),
        "GLM-4-9B-0414-Q4_K_M.gguf": ("glm", None),
        "MiniCPM4-8B-Q4_K_M.gguf": ("minicpm", None),
    }
    with folder() as where:
        for name, (family, version) in names.items():
            (where / name).write_bytes(nameless)
            with UnifiedLLM(where / name, n_ctx=512, n_threads=1) as llm:
                assert llm.family.name == family, (name, llm.family)
                assert version in (None, llm.family.version), (name, llm.family)
                assert llm.family.recommended() or family not in ("qwen", "gemma"), name
                assert isinstance(llm.generate(QUESTION, max_tokens=4), str)
            (where / name).unlink()


@line("nanobind", "UnifiedLLM.generate(..., thinking=True), if the model supports it")
def _() -> None:
    with UnifiedLLM(MODEL, n_ctx=512, n_threads=1) as llm:
        assert llm.generate(QUESTION, temperature=0, thinking=True) == "42"
        n_thinking = llm.llm.engine.stats.n_generated
        assert llm.generate(QUESTION, temperature=0) == "42"
        assert n_thinking > 2 * llm.llm.engine.stats.n_generated
    data = MODEL.read_bytes().replace(b"general.name", b"general.eman")
    with folder() as where:
        path = where / "Qwen3-30B-A3B-Instruct-2507-Q4_K_S.gguf"
        path.write_bytes(data)
        with UnifiedLLM(path, n_ctx=512, n_threads=1) as llm:
            refused(ValidationError, lambda: llm.generate(QUESTION, thinking=True))


@line("nanobind", "UnifiedLLM raises on max_tokens <= 0 and on overflow")
def _() -> None:
    with UnifiedLLM(MODEL, n_ctx=256, n_threads=1) as llm:
        for max_tokens in (0, -5):
            refused(ValidationError, lambda n=max_tokens: llm.generate("a", n))  # type: ignore[misc]
        error = refused(ContextOverflowError, lambda: llm.generate("word " * 900))
        assert "n_ctx" in error


@line("nanobind", "libraries stay local to the package; theirs are preloaded with RTLD_GLOBAL")
def _() -> None:
    code = (
        "import ctypes, llama_cffi\n"
        "print(llama_cffi.get_library().path)\n"
        "print(hasattr(ctypes.CDLL(None), 'llama_backend_init'))"
    )
    done = run(code)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[1] == "False"


@line("nanobind", "LLAMA_CFFI_LIB at run time instead of LLAMA_LIB_DIR at build time; no compiling")
def _() -> None:
    library = Path(llama_cffi.get_library().path)
    code = "import llama_cffi; print(llama_cffi.get_library().path)"
    compiled = {"LLAMA_LIB_DIR": "/nowhere", "LLAMA_INCLUDE_DIR": "/nowhere"}
    compiled |= {"CMAKE_BUILD_TYPE": "Nothing", "CMAKE_ARGS": "-DLLAMA_PORTABLE=ON"}
    for lib in (library, library.parent):
        done = run(code, LLAMA_CFFI_LIB=str(lib), **compiled)
        assert (done.returncode, Path(done.stdout.strip())) == (0, library), done
    # A folder with a copy of the same build works too.
    with folder() as where:
        for file in library.parent.glob("*.so*"):
            shutil.copy(file, where)
        done = run(code, LLAMA_CFFI_LIB=str(where))
        assert Path(done.stdout.strip()).parent == where, done


@line("nanobind", "close while another thread generates: an error there, and memory is freed")
def _() -> None:
    llm, errors = load(), []

    def work() -> None:
        try:
            while True:
                llm.generate(story(llm), 300, temperature=1.5)
        except ValidationError as e:
            errors.append(str(e))

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    llm.close()
    thread.join(30)
    assert errors
    assert "closed" in errors[0]
    assert llm.model.closed
