"""The native baselines of overhead.py and serving.py: C loops on the context of an engine.

They share context, thread pool and weights with the engine, so only the host code differs. The
engine's abort callback is removed while C runs, because a native program has none.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from llama_cffi import Engine, SamplerChain, cdefs
from llama_cffi.binding import Batch, Context, Library

FOLDER = Path(__file__).parent


class Run(NamedTuple):
    """The times of one generation.

    Attributes:
        first_s: Time to the first token.
        rest_s: Time from the first to the last token.
        cpu_s: Processor time from the first to the last token, all threads.
        text: The answer, UTF-8.
    """

    first_s: float
    rest_s: float
    cpu_s: float
    text: bytes


class NativeLoop:
    """`llama_decode` and `llama_sampler_sample` in turn, without Python.

    Attributes:
        kind: Compiled C, or a bare cffi loop if there is no compiler.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        compiler = _compiler()
        self.kind = f"C, compiled by {compiler}" if compiler else "bare cffi loop: no C compiler"
        self._loop = None if compiler is None else _compiled(compiler, library, "native_loop")
        self._functions = _functions(library)

    def run(self, engine: Engine, chain: SamplerChain, tokens: Sequence[int], n: int) -> Run:
        """Generate *n* tokens after *tokens* on the engine's context, after clearing its memory."""
        ffi, context = self._library.ffi, engine.context
        prompt, one = Batch(len(tokens)), Batch(1)
        prompt.fill(tokens, 0)
        one.fill((0,), 0)
        ids, us = ffi.new("int32_t[]", n), ffi.new("int64_t[3]")
        arguments = context.ptr, chain.ptr, prompt.struct, one.struct, n, ids, us
        chain.reset()
        context.memory.clear()
        with _unabortable(context):
            code = (self._call_c if self._loop else self._call_cffi)(*arguments)
        if code:
            raise SystemExit(f"llama_decode returned {code} in the native loop")
        text = b"".join(map(engine.model.vocab.token_to_piece, ids))
        return Run(us[0] / 1e6, us[1] / 1e6, us[2] / 1e6, text)

    def _call_c(self, *arguments: Any) -> int:
        assert self._loop is not None
        return int(self._loop(self._functions, *_plain(self._library, arguments)))

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


class NativeBatch:
    """Several requests in one batch, without Python.

    Raises:
        SystemExit: There is no C compiler.
    """

    def __init__(self, library: Library) -> None:
        compiler = _compiler()
        if compiler is None:
            raise SystemExit("no C compiler (cc, gcc, clang) found for the native baseline")
        self._library = library
        self._loop = _compiled(compiler, library, "native_batch")
        self._functions = _functions(library)

    def run(self, context: Context, prompts: Sequence[Sequence[int]], n: int) -> list[list[float]]:
        """Generate *n* tokens greedily after each of *prompts*, which have the same length.

        Returns:
            For each prompt, the seconds from the start to each token.
        """
        ffi, n_seqs, n_prompt = self._library.ffi, len(prompts), len(prompts[0])
        n_batch = context.n_batch
        chains = [SamplerChain(context.model).add_greedy() for _ in prompts]
        pointers = ffi.new("struct llama_sampler *[]", [chain.ptr for chain in chains])
        tokens = ffi.new("int32_t[]", [token for prompt in prompts for token in prompt])
        batch = Batch(n_batch, library=self._library)
        ids, us = ffi.new("int32_t[]", n_seqs * n), ffi.new("int64_t[]", n_seqs * n)
        context.memory.clear()
        arguments = context.ptr, pointers, batch.struct, n_batch, tokens, n_seqs, n_prompt, n
        with _unabortable(context):
            plain = _plain(self._library, (*arguments, ids, us))
            code = self._loop(self._functions, *plain)
        context.memory.clear()
        for chain in chains:
            chain.close()
        if code:
            raise SystemExit(f"llama_decode returned {code} in the native loop")
        return [[us[s * n + k] / 1e6 for k in range(n)] for s in range(n_seqs)]


@contextmanager
def _unabortable(context: Context) -> Iterator[None]:
    context.abort_flag.detach(context.ptr)
    try:
        yield
    finally:
        context.abort_flag.attach(context.ptr)


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def _functions(library: Library) -> Any:
    """Return the addresses for `struct functions` of the C sources."""
    addresses = (
        library.ffi.cast("uintptr_t", library.ffi.addressof(library.lib, name))
        for name in ("llama_decode", "llama_sampler_sample", "llama_time_us")
    )
    return (ctypes.c_void_p * 3)(*map(int, addresses))


def _plain(library: Library, arguments: Sequence[Any]) -> list[Any]:
    """Return cffi arguments as ctypes arguments."""
    cast = library.ffi.cast
    return [
        a if isinstance(a, int) else ctypes.c_void_p(int(cast("uintptr_t", a))) for a in arguments
    ]


def _compiled(compiler: str, library: Library, name: str) -> Any:
    """Compile a C source of this folder and return its function of the same name."""
    with tempfile.TemporaryDirectory() as folder:
        declarations = Path(folder, "declarations.h")
        declarations.write_text(cdefs.declarations(library.abi.name), encoding="utf-8")
        out = Path(folder, f"{name}.so")
        command = [compiler, "-O2", "-shared", "-fPIC", "-I", folder]
        subprocess.run([*command, str(FOLDER / f"{name}.c"), "-o", str(out)], check=True)
        function = getattr(ctypes.CDLL(str(out)), name)  # loaded, so the file can be deleted
    function.restype = ctypes.c_int32
    return function
