"""The features of cyllama."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path

from lines import MODEL, QUESTION, line, raw_greedy

from llama_cffi import Batch, Context, Model, SamplerChain, get_library


@line("cyllama", "the low-level API: model, context, batch, chain, tokenize, piece, time")
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
    example = Path(__file__).parents[2] / "examples" / "simple_lowlevel.py"

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


@line("cyllama", "token ids equal those of llama-simple's steps in the raw C API")
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
