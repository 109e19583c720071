"""Random use of Engine, Llama and InferenceEngine, on the models of a `Machine`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from llama_cffi import Engine, InferenceEngine, Llama

if TYPE_CHECKING:
    from .low_level_machine import Machine

__all__ = ["HighLevelSteps"]

TEXTS = ("", "a", "hi there", "a\0b", "<|im_end|>", "\u00e9\U0001f600", "x" * 90, "ab " * 200)
GRAMMARS = ('root ::= "a"*', "root ::= [a-z]+ | [0-9]+", 'root ::= "\\xff" .*', "root ::= root", "")
POLICIES = ("error", "truncate_left", "truncate_middle", "shift", "odd")


class HighLevelSteps:
    """Steps that a `Machine` takes between its own."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.rng = machine, machine.rng
        self.states: list[bytes] = []
        self.streams: list[Iterator[Any]] = []

    def options(self, *names: str) -> dict[str, Any]:
        """Return a random choice of sampling options, and of those *names*."""
        rng, odd, real = self.rng, self.machine.odd, self.machine.real
        makers: dict[str, Callable[[], Any]] = {
            "max_tokens": lambda: odd(0, 1, 3, 8, 20),
            "temperature": lambda: real(0, 3),
            "top_k": lambda: odd(0, 1, 40),
            "top_p": lambda: real(0, 1),
            "min_p": lambda: real(0, 1),
            "typical_p": lambda: real(0, 1),
            "repeat_penalty": lambda: real(0, 2),
            "mirostat_mode": lambda: odd(0, 1, 2),
            "xtc_probability": lambda: real(0, 1),
            "dry_multiplier": lambda: real(0, 2),
            "seed": lambda: odd(1, 2),
            "grammar": lambda: rng.choice(GRAMMARS),
            "logit_bias": lambda: {odd(1, 2): real(-9, 9)},
            "stop": lambda: rng.choice(TEXTS),
            "logprobs": lambda: odd(0, 3),
            "timeout_s": lambda: rng.choice((0, 1e-4, 0.01, 60)),
            "context_policy": lambda: rng.choice(POLICIES),
            "cache_prompt": lambda: rng.random() < 0.5,
            "ignore_eos": lambda: rng.random() < 0.5,
        }
        chosen = {name: make() for name, make in makers.items() if rng.random() < 0.12}
        chosen.setdefault("max_tokens", rng.choice((1, 2, 5)))
        if chosen["max_tokens"] not in range(256):  # endless where the context shifts
            chosen["timeout_s"] = min(chosen.get("timeout_s", 60), 0.05)
        self.machine.log(f"    {chosen}")
        return chosen

    def context_options(self) -> dict[str, Any]:
        """Return a random choice of options of a context."""
        rng = self.rng
        options: dict[str, Any] = {
            "n_batch": rng.choice((1, 8, 64)),
            "n_ubatch": rng.choice((1, 8, 64)),
            "embeddings": rng.choice((True, False)),
            "pooling": rng.choice(("none", "mean", "last")),
            "flash_attn": rng.choice((True, False)),
            "type_k": rng.choice(("f32", "q8_0", "bf16")),
            "type_v": rng.choice(("f32", "q8_0")),
            "swa_full": rng.choice((True, False)),
            "kv_unified": rng.choice((True, False)),
            "context_policy": rng.choice(POLICIES),
        }
        chosen = {name: value for name, value in options.items() if rng.random() < 0.15}
        chosen |= {"n_ctx": rng.choice((32, 64, 256)), "n_threads": rng.choice((1,) * 19 + (2,))}
        self.machine.log(f"    {chosen}")
        return chosen

    def engine(self) -> Engine:
        def make() -> Engine:
            return Engine(self.machine.model(), **self.context_options())

        engine: Engine = self.machine.any(Engine, make)
        return engine

    def llama(self) -> Llama:
        def make() -> Llama:
            options = self.context_options()
            if self.rng.random() < 0.2:
                options["n_parallel"] = 2
            return Llama(self.machine.model(), **options)

        llama: Llama = self.machine.any(Llama, make)
        return llama

    def inference_engine(self) -> InferenceEngine:
        def make() -> InferenceEngine:
            n_parallel = self.rng.choice((1, 2, 4))
            options = self.context_options()
            start = self.rng.random() < 0.3
            return InferenceEngine(self.machine.model(), n_parallel, start=start, **options)

        engine: InferenceEngine = self.machine.any(InferenceEngine, make)
        return engine

    def take(self, stream: Any) -> None:
        """Read a part of a stream and keep, close or drop it; other results are whole."""
        if isinstance(stream, Iterator):
            list(itertools.islice(stream, self.rng.randrange(4)))
            if self.rng.random() < 0.3:
                self.streams = [*self.streams[-2:], stream]
            elif self.rng.random() < 0.5:
                stream.close()  # type: ignore[attr-defined]

    def do_engine(self) -> None:
        engine, rng = self.engine(), self.rng
        text, stream = rng.choice(TEXTS), rng.random() < 0.3
        tokens = [self.machine.odd(rng.randrange(100)) for _ in range(rng.randrange(9))]
        calls: tuple[Callable[[], object], ...] = (
            lambda: engine.generate(text, stream=stream, **self.options()),
            lambda: engine.generate(text, raw=True, stream=stream, **self.options()),
            lambda: engine.generate_chat(
                [{"role": rng.choice(("user", "tool", "x")), "content": text}], **self.options()
            ),
            lambda: engine.generate_tokens(tokens, **self.options()),
            lambda: engine.detokenize(engine.tokenize(text, True, rng.random() < 0.5)),
            lambda: engine.detokenize(tokens),
            engine.cancel,
            engine.cache_clear,
        )
        self.choose(calls)

    def do_llama(self) -> None:
        llama, rng, odd = self.llama(), self.rng, self.machine.odd
        text, stream = rng.choice(TEXTS), rng.random() < 0.3
        calls: tuple[Callable[[], object], ...] = (
            lambda: llama.create_completion(text, stream=stream, **self.options()),
            lambda: llama.create_completion(text, stream=stream, **self.options()),
            lambda: llama.create_chat_completion(
                [{"role": "user", "content": text}], stream=stream, **self.options()
            ),
            lambda: llama.embed([text, "b"], truncate=rng.random() < 0.5),
            lambda: llama.rerank(text, ["a", text], truncate=True),
            lambda: self.states.append(llama.get_state()),
            lambda: llama.set_state(rng.choice(self.states or [b""])),
            lambda: llama.load_lora(self.machine.lora, self.machine.real(-2, 2)),
            lambda: llama.remove_lora(self.machine.lora),
            llama.clear_lora,
            llama.reset,
            lambda: llama.kv_cache_seq_rm(odd(0), odd(-1, 0, 2), odd(-1, 5)),
            lambda: llama.kv_cache_seq_add(odd(0), odd(0, 2), odd(-1, 5), odd(1, -1)),
            lambda: llama.kv_cache_seq_cp(odd(0), odd(0, 1)),
        )
        self.choose(calls)
        self.states = self.states[-3:]

    def do_inference_engine(self) -> None:
        engine, rng = self.inference_engine(), self.rng
        text = rng.choice(TEXTS)
        calls: tuple[Callable[[], object], ...] = (
            lambda: engine.submit(text, priority=self.machine.odd(0, 1), **self.options()),
            lambda: engine.submit(text, **self.options()),
            lambda: engine.submit(text, **self.options()).cancel(),
            lambda: [engine.step() for _ in range(rng.randrange(20))],
            lambda: [engine.step() for _ in range(rng.randrange(20))],
            engine.cache_clear,
        )
        self.choose(calls)

    def do_streams(self) -> None:
        if self.streams:
            stream = self.rng.choice(self.streams)
            self.take(stream)

    def do_close_high_level(self) -> None:
        self.machine.any(self.rng.choice((Engine, Llama, InferenceEngine))).close()

    def choose(self, calls: tuple[Callable[[], object], ...]) -> None:
        number = self.rng.randrange(len(calls))
        self.machine.log(f"    {number}")
        self.take(calls[number]())
