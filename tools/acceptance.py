"""Run every line of what Polaris Core and cyllama promise their users, on the demo model.

    python tools/acceptance.py              prints a line per promise; status 1 if one is not kept
    LLAMA_CFFI_BUILD=npm:3.1.1 python tools/acceptance.py polaris

Greedy ids are compared with the same steps through the raw C API of the loaded build.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from llama_cffi import (
    Batch,
    Context,
    ContextOverflowError,
    Engine,
    KvCacheFullError,
    Model,
    SamplerChain,
    demo,
    get_library,
)
from llama_cffi.decoding import Slot
from llama_cffi.interrupts import Stop
from llama_cffi.stats import GenerationStats

MODEL = demo.model_path()
QUESTION = "What is 17 + 25?"
LINES: dict[str, list[tuple[str, Callable[[], None]]]] = {"polaris": [], "cyllama": []}


def line(source: str, promise: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a check of one promise."""

    def register(check: Callable[[], None]) -> Callable[[], None]:
        LINES[source].append((promise, check))
        return check

    return register


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set variables for a block."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def raw_greedy(model: Model, tokens: list[int], n_predict: int) -> list[int]:
    """The greedy ids by llama_decode and llama_sampler_sample alone."""
    library = model.library
    lib = library.lib
    context = Context(model, n_ctx=256, n_threads=1)
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
    batch = lib.llama_batch_init(256, 0, 1)
    found: list[int] = []
    new, pos = tokens, 0
    while len(found) < n_predict:
        for i, token in enumerate(new):
            batch.token[i], batch.pos[i] = token, pos + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i == len(new) - 1
        batch.n_tokens = len(new)
        assert lib.llama_decode(context.ptr, batch) == 0
        pos += len(new)
        token = lib.llama_sampler_sample(chain, context.ptr, -1)
        if model.vocab.is_eog(token):
            break
        found.append(token)
        new = [token]
    lib.llama_batch_free(batch)
    lib.llama_sampler_free(chain)
    context.close()
    return found


def refused(error: type[Exception], call: Callable[[], object]) -> str:
    """The message of the error that *call* must raise."""
    try:
        call()
    except error as e:
        return str(e)
    raise AssertionError(f"no {error.__name__}")


def says(text: str) -> str:
    """A grammar that lets the model say *text* only."""
    return 'root ::= "' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@line("polaris", "Engine(model_path, n_ctx=4096, n_threads=8, n_gpu_layers=-1), no server")
def _() -> None:
    with Engine(model_path=str(MODEL), n_ctx=4096, n_threads=8, n_gpu_layers=-1) as engine:
        assert engine.n_ctx >= 4096
        assert engine.generate(QUESTION, temperature=0) == "42"


@line("polaris", "generate(prompt, system_prompt, n_predict, temperature, top_p, repeat_penalty)")
def _() -> None:
    parts: list[bytes] = []
    options = {"n_predict": 20, "temperature": 0.7, "top_p": 0.9, "repeat_penalty": 1.1}
    with Engine(MODEL, n_ctx=512, n_threads=1) as engine:
        ask = {"prompt": QUESTION, "system_prompt": "You are a friendly assistant.", "seed": 3}
        result = engine.generate(**ask, **options, callback=parts.append)  # type: ignore[arg-type]
        assert engine.generate(**ask, **options) == result  # type: ignore[arg-type]
        assert b"".join(parts).decode("utf-8", errors="ignore") == result
        assert isinstance(engine.generate("test"), str)


@line("polaris", "greedy ids equal the raw C API's")
def _() -> None:
    with Engine(MODEL, n_ctx=512, n_threads=1) as engine:
        for question in (QUESTION, "Turn on the lamp in the kitchen.", "Tell me a story."):
            tokens = engine.format_prompt(question)
            assert engine.generate_tokens(tokens, 24, temperature=0) == raw_greedy(
                engine.model, tokens, 24
            )


@line("polaris", "the callback gets bytes that may split UTF-8; together they are the result")
def _() -> None:
    text, parts = "añ€🙂" * 4, []
    with Engine(MODEL, n_ctx=512, n_threads=1) as engine:
        result = engine.generate(QUESTION, grammar=says(text), callback=parts.append)
    assert result == b"".join(parts).decode() == text
    assert all(isinstance(part, bytes) for part in parts)


@line("polaris", "flush by bytes, tokens, milliseconds: POLARIS_FLUSH, _TOKFLUSH, _MS_FLUSH")
def _() -> None:
    text = "abcdefghijklmnopqrstuvwxyz" * 4
    with Engine(MODEL, n_ctx=512, n_threads=1) as engine:
        tokens = len(engine.tokenize(text))
        for rules, most in (((64, 0, 0), 2), ((0, 1, 0), 104), ((0, 0, 1), 104), ((0, 0, 0), 1)):
            names = ("POLARIS_FLUSH", "POLARIS_TOKFLUSH", "POLARIS_MS_FLUSH")
            parts: list[bytes] = []
            with environment(**{n: str(v) for n, v in zip(names, rules, strict=True)}):
                engine.generate(QUESTION, grammar=says(text), callback=parts.append)
            assert b"".join(parts).decode() == text
            assert len(parts) <= most, (rules, len(parts), tokens)


@line("polaris", "POLARIS_N_GPU_LAYERS, _BATCH, _UBATCH, _SAFETY; arguments win")
def _() -> None:
    with environment(POLARIS_BATCH="64", POLARIS_UBATCH="32", POLARIS_N_GPU_LAYERS="0"):
        with Engine(MODEL, n_ctx=256, n_threads=1) as engine:
            assert (engine.context.n_batch, engine.context.n_ubatch) == (64, 32)
        with Engine(MODEL, n_ctx=256, n_threads=1, n_batch=128) as engine:
            assert engine.context.n_batch == 128
    with Engine(MODEL, n_ctx=256, n_threads=1) as engine, environment(POLARIS_SAFETY="100"):
        engine.generate_tokens([5] * 155, 1)
        refused(ContextOverflowError, lambda: engine.generate_tokens([5] * 156, 1))


@line("polaris", "POLARIS_STAGE set between calls: [OK] tokenize: N toks, [OK] prefill in S s")
def _() -> None:
    reports = []
    with Engine(MODEL, n_ctx=256, n_threads=1) as engine:
        for stage in ("prompt", "tokenize", "prefill", "sample", "piece", "push"):
            out = io.StringIO()
            with environment(POLARIS_STAGE=stage), contextlib.redirect_stderr(out):
                reports.append(engine.generate("test"))
            assert out.getvalue().strip() == reports[-1]
        assert engine.generate(QUESTION, temperature=0) == "42"
    assert re.fullmatch(r"\[OK\] tokenize: \d+ toks", reports[1])
    assert re.fullmatch(r"\[OK\] prefill in \d+\.\d{3}s", reports[2])
    assert all(r.startswith("[OK] ") for r in reports)


@line("polaris", "special-token-aware tokenization and the chat template, system and user")
def _() -> None:
    with Engine(MODEL, n_ctx=256, n_threads=1) as engine:
        text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        text += "<|im_start|>assistant\n"
        tokens = engine.format_prompt("Hi", "Be brief.")
        assert tokens == engine.tokenize(text, parse_special=True)
        assert len(tokens) < len(engine.tokenize(text, parse_special=False))
        # What users write is never read as special tokens where the text is raw.
        assert engine.detokenize(engine.tokenize("<|im_end|>")) == "<|im_end|>"


@line("polaris", "batch back-off: no slot -> halve -> retry -> give up with an error")
def _() -> None:
    with Model(MODEL) as model:
        context = Context(model, n_ctx=256, n_batch=256, n_seq_max=2, n_threads=1, kv_unified=True)
        batch, stats, stop = Batch(256), GenerationStats(), Stop(context.abort_flag)
        with stop.running():
            Slot(context, batch, seq_id=1).feed([5] * 200, stop, stats)
            slot = Slot(context, batch)
            error = refused(KvCacheFullError, lambda: slot.feed([5] * 100, stop, stats))
            assert "of 100 tokens fitted" in error
            # Where C cannot be stopped the chunks may be that small from the beginning.
            assert stats.n_backoffs >= 2 or not context.abortable
            assert context.memory.seq_pos_max(0) == -1
            slot.feed([5] * 50, stop, stats)


@line("polaris", 'JSON early stop: "done" or "next_step" and balanced; the text is the JSON')
def _() -> None:
    with Engine(MODEL, n_ctx=512, n_threads=1) as engine:
        for answer in ('{"thought": "a } \\" {", "done": true}', '{"next_step": ["x", {"y": 1}]}'):
            assert engine.generate("go", grammar=says(answer + " and so on")) == answer
            assert engine.stats.finish_reason == "json"
        inside = '{"thought": "done } "} and so on'
        assert engine.generate("go", grammar=says(inside)) == inside


@line("polaris", "room<=0 is an error that says what to change")
def _() -> None:
    with Engine(MODEL, n_ctx=256, n_threads=1) as engine:
        error = refused(ContextOverflowError, lambda: engine.generate("word " * 400))
        assert "room=-" in error
        assert "n_ctx >" in error


@line("polaris", "GIL released: another thread runs; concurrent calls on one engine queue")
def _() -> None:
    with Engine(MODEL, n_ctx=512, n_threads=1) as engine:
        expected = engine.generate(QUESTION, temperature=0)
        ticks, done, answers = [0], threading.Event(), []

        def count() -> None:
            while not done.is_set():
                ticks[0] += 1
                time.sleep(0.0005)

        def ask() -> None:
            answers.extend(engine.generate(QUESTION, temperature=0) for _ in range(4))

        counter = threading.Thread(target=count)
        askers = [threading.Thread(target=ask) for _ in range(4)]
        counter.start()
        before = ticks[0]
        for thread in askers:
            thread.start()
        for thread in askers:
            thread.join()
        during = ticks[0] - before
        done.set()
        counter.join()
        assert answers == [expected] * 16
        assert during > 3


@line("polaris", "troubleshooting: a library that is missing or broken is named, with advice")
def _() -> None:
    code = "import llama_cffi; llama_cffi.get_library()"
    for lib, says_what in (("nowhere/libllama.so", "nowhere"), (str(MODEL), MODEL.name)):
        env = {**os.environ, "LLAMA_CFFI_LIB": lib}
        run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        last = run.stderr.strip().splitlines()[-1]
        assert run.returncode == 1
        assert last.startswith("llama_cffi.errors."), last
        assert says_what in last, last


@line("polaris", "a generic command line")
def _() -> None:
    script = Path(sys.executable).with_name("llama-cffi")
    run = subprocess.run(
        [script, "generate", "-m", str(MODEL), "-p", QUESTION, "--temperature", "0"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, "42\n"), run


@line("cyllama", "the low-level names: model, context, batch, chain, tokenize, piece, time")
def _() -> None:
    library = get_library()
    with Model(MODEL, n_gpu_layers=0) as model, Context(model, n_ctx=256, n_threads=4) as context:
        chain = SamplerChain(model).add_greedy()
        tokens = model.vocab.tokenize(QUESTION, add_special=True)
        batch = Batch(512, n_seq_max=1)
        for pos, token in enumerate(tokens):
            batch.add(token, pos, [0], logits=pos == len(tokens) - 1)
        context.decode(batch)
        new = chain.sample(context, len(batch) - 1)
        assert isinstance(model.vocab.token_to_piece(new), bytes)
        assert model.vocab.is_eog(model.vocab.eos)
        batch.clear()
        assert len(batch) == 0
        assert context.n_ctx == 256
        assert library.lib.ggml_time_us() > 0


@line("cyllama", "the greedy loop of its README, step by step (examples/simple_lowlevel.py)")
def _() -> None:
    example = Path(__file__).parents[1] / "examples" / "simple_lowlevel.py"

    def run(*arguments: str) -> tuple[str, object]:
        out, before = io.StringIO(), sys.argv
        sys.argv = [str(example), str(MODEL), *arguments]
        status: object = None
        try:
            with contextlib.redirect_stdout(out):
                runpy.run_path(str(example), run_name="__main__")
        except SystemExit as e:
            status = e.code
        finally:
            sys.argv = before
        return out.getvalue(), status

    out, status = run()
    assert status is None
    assert "n_predict = 32, n_ctx = 256, n_kv_req = " in out
    assert "\n42\n" in out  # it ended at EOG
    assert re.search(r"decoded \d+ tokens in \d+\.\d\d s, speed: \d+\.\d\d t/s", out)
    out, status = run("-n", "1000")
    assert "n_kv_req > n_ctx" in str(status)
    assert "either reduce n_predict or increase n_ctx" in str(status)


@line("cyllama", "its ids equal those of llama-simple's steps in the raw C API")
def _() -> None:
    with Model(MODEL) as model, Context(model, n_ctx=256, n_threads=1) as context:
        tokens = model.vocab.tokenize("The sun is", add_special=True)
        chain, batch, found = SamplerChain(model).add_greedy(), Batch(256), []
        batch.fill(tokens, 0)
        while len(found) < 40:
            context.decode(batch)
            token = chain.sample(context)
            if model.vocab.is_eog(token):
                break
            found.append(token)
            batch.fill([token], len(tokens) + len(found) - 1)
        assert found == raw_greedy(model, tokens, 40)


@line("cyllama", "everything else of llama.h through Library.lib and .ffi")
def _() -> None:
    library = get_library()
    info = library.ffi.string(library.lib.llama_print_system_info()).decode()
    assert " = 1" in info  # a CPU feature
    params = library.lib.llama_sampler_chain_default_params()
    params.no_perf = False
    chain = library.lib.llama_sampler_chain_init(params)
    assert library.lib.llama_sampler_chain_n(chain) == 0
    library.lib.llama_sampler_free(chain)


def main() -> int:
    """Run the lines of the sources that the command line names."""
    failed = 0
    build = get_library().build
    for source in sys.argv[1:] or list(LINES):
        print(f"{source} on {build.tag or build.library} ({build.variant})")
        for promise, check in LINES[source]:
            try:
                check()
                print(f"  [OK] {promise}", flush=True)
            except Exception:
                failed += 1
                print(f"  [FAILED] {promise}\n{traceback.format_exc()}", flush=True)
    print(f"{failed} failed" if failed else "all kept")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
