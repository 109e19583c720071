"""The features of Polaris Core."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from lines import MODEL, QUESTION, environment, line, raw_greedy, refused, says

from llama_cffi import Batch, Context, ContextOverflowError, Engine, KvCacheFullError, Model
from llama_cffi.generation.cancellation import CancelToken
from llama_cffi.generation.slot import Slot
from llama_cffi.generation.stats import GenerationStats


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


@line("polaris", "the callback receives bytes that may split UTF-8; joined they are the result")
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


@line("polaris", "POLARIS_N_GPU_LAYERS, _BATCH, _UBATCH, _SAFETY; arguments override them")
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
            assert out.getvalue() == reports[-1] + "\n"
        assert engine.generate(QUESTION, temperature=0) == "42"
    assert reports[0].endswith("<|im_start|>user\ntest<|im_end|>\n<|im_start|>assistant\n")
    assert re.fullmatch(r"\[OK\] tokenize: \d+ toks", reports[1])
    assert re.fullmatch(r"\[OK\] prefill in \d+\.\d{3}s", reports[2])
    assert all(r.startswith("[OK] ") for r in reports[1:])


@line("polaris", "special-token-aware tokenization and the chat template, system and user")
def _() -> None:
    with Engine(MODEL, n_ctx=256, n_threads=1) as engine:
        text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        text += "<|im_start|>assistant\n"
        tokens = engine.format_prompt("Hi", "Be brief.")
        assert tokens == engine.tokenize(text, parse_special=True)
        assert len(tokens) < len(engine.tokenize(text, parse_special=False))
        # Without parse_special, text is never parsed as special tokens.
        assert engine.detokenize(engine.tokenize("<|im_end|>")) == "<|im_end|>"


@line("polaris", "batch back-off: no slot -> halve -> retry -> error")
def _() -> None:
    with Model(MODEL) as model:
        context = Context(model, n_ctx=256, n_batch=256, n_seq_max=2, n_threads=1, kv_unified=True)
        batch, stats, token = Batch(256), GenerationStats(), CancelToken(context.abort_flag)
        with token.running():
            Slot(context, batch, seq_id=1).feed([5] * 200, token, stats)
            slot = Slot(context, batch)
            error = refused(KvCacheFullError, lambda: slot.feed([5] * 100, token, stats))
            assert "of 100 tokens fitted" in error
            # Where C cannot be aborted, the first chunks may be small already.
            assert stats.n_backoffs >= 2 or not context.abortable
            assert context.memory.seq_pos_max(0) == -1
            slot.feed([5] * 50, token, stats)


@line("polaris", 'JSON early stop: balanced JSON with a key "done" or "next_step" ends the answer')
def _() -> None:
    with Engine(MODEL, n_ctx=512, n_threads=1) as engine:
        for answer in (
            '{"thought": "a } \\" {", "done": true}',
            '{"next_step": ["x", {"y": 1}]}',
            '[{"done": true}]',
            'So: {"plan": {"next_step": "x"}}',
        ):
            assert engine.generate("go", grammar=says(answer + " and so on")) == answer
            assert engine.stats.finish_reason == "json"
        inside = '{"thought": "done } "} and so on'
        assert engine.generate("go", grammar=says(inside)) == inside


@line("polaris", "generate_chat takes pairs; a prompt over the context loses its beginning")
def _() -> None:
    with Engine(MODEL, n_ctx=256, n_threads=1) as engine:
        assert engine.generate_chat([("user", QUESTION)], 16, 0) == "42"
        engine.generate_chat([("user", "word " * 400 + QUESTION)], 16)
        assert engine.stats.n_prompt == 256 - 16 - 16
        assert engine.stats.n_truncated > 100


@line("polaris", "room<=0 is an error that says what to change, if no prompt may be cut")
def _() -> None:
    with Engine(MODEL, n_ctx=256, n_threads=1, context_policy="error") as engine:
        error = refused(ContextOverflowError, lambda: engine.generate("word " * 400))
        assert "no room for an answer" in error
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


@line("polaris", "troubleshooting: the error names a missing or broken library, with advice")
def _() -> None:
    code = "import llama_cffi; llama_cffi.get_library()"
    for lib, named in (("nowhere/libllama.so", "nowhere"), (str(MODEL), MODEL.name)):
        env = {**os.environ, "LLAMA_CFFI_LIB": lib}
        run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        last = run.stderr.strip().splitlines()[-1]
        assert run.returncode == 1
        assert last.startswith("llama_cffi.errors."), last
        assert named in last, last


@line("polaris", "a generic command line")
def _() -> None:
    script = Path(sys.executable).with_name("llama-cffi")
    run = subprocess.run(
        [script, "generate", "-m", str(MODEL), "-p", QUESTION, "--temperature", "0"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, "42\n"), run
