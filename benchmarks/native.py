"""The native side of overhead.py: a C loop on the context of an `Engine`.

Context, thread pool and weights are those of the engine, so that only the host differs. The
engine's abort callback is taken off while C runs: a native program would have none.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama_cffi import Engine, SamplerChain, cdefs
from llama_cffi.binding import Batch, Library

SOURCE = Path(__file__).with_name("native_loop.c")


class Run(NamedTuple):
    """What one generation took.

    Attributes:
        first_s: To the first token.
        rest_s: From there to the last one.
        cpu_s: Of that the processor time, of all threads.
        text: The answer's bytes.
    """

    first_s: float
    rest_s: float
    cpu_s: float
    text: bytes


class NativeLoop:
    """`llama_decode` and `llama_sampler_sample` in turn, without Python.

    Attributes:
        kind: What runs: compiled C, or a bare cffi loop where there is no compiler.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        self.kind = f"C, compiled by {compiler}" if compiler else "bare cffi loop: no C compiler"
        self._loop = None if compiler is None else _compiled(compiler, library)
        addresses = (
            library.ffi.cast("uintptr_t", library.ffi.addressof(library.lib, name))
            for name in ("llama_decode", "llama_sampler_sample", "llama_time_us")
        )
        self._functions = (ctypes.c_void_p * 3)(*map(int, addresses))

    def run(self, engine: Engine, chain: SamplerChain, tokens: Sequence[int], n: int) -> Run:
        """Generate *n* tokens after *tokens* on the engine's context, from an empty memory."""
        ffi, lib, context = self._library.ffi, self._library.lib, engine.context
        prompt, one = Batch(len(tokens)), Batch(1)
        prompt.fill(tokens, 0)
        one.fill((0,), 0)
        ids, us = ffi.new("int32_t[]", n), ffi.new("int64_t[3]")
        arguments = context.ptr, chain.ptr, prompt.struct, one.struct, n, ids, us
        chain.reset()
        context.memory.clear()
        lib.llama_set_abort_callback(context.ptr, ffi.NULL, ffi.NULL)
        try:
            code = (self._call_c if self._loop else self._call_cffi)(*arguments)
        finally:
            flag = context.abort_flag
            lib.llama_set_abort_callback(context.ptr, flag.callback, flag.data)
        if code:
            raise SystemExit(f"llama_decode returned {code} in the native loop")
        text = b"".join(map(engine.model.vocab.token_to_piece, ids))
        return Run(us[0] / 1e6, us[1] / 1e6, us[2] / 1e6, text)

    def _call_c(self, *arguments: Any) -> int:
        assert self._loop is not None
        cast = self._library.ffi.cast
        plain = (
            a if isinstance(a, int) else ctypes.c_void_p(int(cast("uintptr_t", a)))
            for a in arguments
        )
        return int(self._loop(self._functions, *plain))

    def _call_cffi(
        self, context: Any, chain: Any, prompt: Any, one: Any, n: int, ids: Any, us: Any
    ) -> int:
        lib = self._library.lib
        decode, sample = lib.llama_decode, lib.llama_sampler_sample
        one, token, pos, start = one[0], one.token, one.pos, prompt.n_tokens
        began = lib.llama_time_us()
        code = decode(context, prompt[0])
        if code:
            return int(code)
        ids[0] = sample(chain, context, -1)
        first, cpu_s = lib.llama_time_us(), time.process_time()
        for i in range(1, n):
            token[0] = ids[i - 1]
            pos[0] = start + i - 1
            code = decode(context, one)
            if code:
                return int(code)
            ids[i] = sample(chain, context, -1)
        us[0], us[1] = first - began, lib.llama_time_us() - first
        us[2] = int((time.process_time() - cpu_s) * 1e6)
        return 0


def _compiled(compiler: str, library: Library) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        declarations = Path(folder, "declarations.h")
        declarations.write_text(cdefs.declarations(library.abi.name), encoding="utf-8")
        out = Path(folder, "native_loop.so")
        command = [compiler, "-O2", "-shared", "-fPIC", "-I", folder, str(SOURCE), "-o", str(out)]
        subprocess.run(command, check=True)
        loop = ctypes.CDLL(str(out)).native_loop  # loaded: the file may go
    loop.restype = ctypes.c_int32
    return loop
