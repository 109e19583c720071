"""Random use of the low-level API, in a process that may crash."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llama_cffi.binding import (
    Batch,
    Candidates,
    Context,
    CustomSampler,
    Grammar,
    LoraAdapter,
    Model,
    SamplerChain,
)
from llama_cffi.errors import LlamaError

ODD = (-1, 0, 1, 2, 3, 31, 32, 255, 2**31 - 1, 2**31, 2**64, -(2**31), True, np.int8(3), 0.5, None)
REALS = (0, 1, -1, 0.5, 1e-9, 1e9, 1e39, -0.0, math.inf, -math.inf, math.nan, np.float16(2), "1")
GRAMMARS = ('root ::= "a"*', "root ::= [a-z]+ | [0-9]+", 'root ::= ("a"+)+', 'root ::= "\\xff" .*')


class Machine:
    """Objects in random states, and the steps that change them.

    Args:
        rng: Chooses everything.
        log: Called with a description before each step.
        lora: An adapter for the first model.
        models: GGUF files.
    """

    def __init__(
        self, rng: random.Random, log: Callable[[str], object], lora: str, models: Sequence[str]
    ) -> None:
        self.rng, self.log, self.lora, self.files = rng, log, lora, models
        self.objects: dict[type, list[Any]] = {}
        self.states: list[bytes] = []
        self.keep: list[object] = []
        self.errors: dict[str, int] = {}
        self.steps: list[Callable[[], object]] = []
        self.add_steps(self)

    def add_steps(self, owner: object) -> None:
        """Also take the steps of *owner*: its methods that begin with `do_`."""
        self.steps += [getattr(owner, n) for n in sorted(dir(owner)) if n.startswith("do_")]

    def close(self) -> None:
        """Drop everything, and what waits for the end of the process."""
        for have in self.objects.values():
            have.clear()
        self.keep.clear()
        self.states.clear()

    def step(self) -> None:
        """Take one step; errors of the package are expected."""
        step = self.rng.choice(self.steps)
        self.log(step.__name__)
        try:
            step()
        except ZeroDivisionError:  # of a hook
            return
        except (LlamaError, TypeError) as e:
            name = type(e).__name__
            self.errors[name] = self.errors.get(name, 0) + 1

    def any(self, kind: type, make: Callable[[], Any] | None = None) -> Any:
        """Return an object of a kind, sometimes a closed one."""
        have = self.objects.setdefault(kind, [])
        if make is not None and (not have or self.rng.random() < 0.04):
            have.append(make())
        if len(have) > 4:
            have.pop(self.rng.randrange(len(have)))
        if not have:
            raise LlamaError("none yet")
        found = self.rng.choice(have)
        if getattr(found, "closed", False) and self.rng.random() < 0.8:
            have.remove(found)
        self.log(f"    {found!r}")
        return found

    def odd(self, *likely: object) -> Any:
        """Return one of *likely*, or sometimes an invalid number."""
        found = self.rng.choice(likely) if self.rng.random() < 0.85 else self.rng.choice(ODD)
        self.log(f"    {found!r}")
        return found

    def real(self, low: float, high: float) -> Any:
        rng = self.rng
        found = rng.uniform(low, high) if rng.random() < 0.8 else rng.choice(REALS)
        self.log(f"    {found!r}")
        return found

    def model(self) -> Model:
        def make() -> Model:
            path = self.rng.choice(self.files)
            return Model(path, use_mmap=self.rng.random() < 0.5)

        model: Model = self.any(Model, make)
        return model

    def context(self) -> Context:
        def make() -> Context:
            rng = self.rng
            options: dict[str, Any] = {
                "n_ctx": rng.choice((0, 32, 64, 256)),
                "n_batch": rng.choice((1, 8, 32, 64)),
                "n_ubatch": rng.choice((1, 4, 8, 64)),
                "n_seq_max": rng.choice((1, 1, 2, 4)),
                "kv_unified": rng.choice((None, True, False)),
                "embeddings": rng.choice((None, None, None, True, False)),
                "pooling": rng.choice((None, None, "none", "mean", "last", "cls", "rank")),
                "attention": rng.choice((None, None, None, "causal", "non_causal")),
                "flash_attn": rng.choice((None, None, True, False)),
                "type_k": rng.choice((None, None, "f32", "q8_0", "bf16", "q4_0", "iq4_nl")),
                "type_v": rng.choice((None, None, None, "f32", "q8_0", "q5_1")),
                "swa_full": rng.choice((None, True, False)),
                "rope_scaling": rng.choice((None, None, "yarn", "linear", "longrope")),
                "yarn_ext_factor": rng.choice((None, None, 0.5)),
            }
            names = [n for n in options if rng.random() < 0.5 and options[n] is not None]
            chosen = {n: options[n] for n in names}
            self.log(f"    {chosen}")
            return Context(
                self.model(), n_threads=rng.choice((1,) * 19 + (2,)), **{"n_ctx": 64, **chosen}
            )

        context: Context = self.any(Context, make)
        return context

    def batch(self) -> Batch:
        rng = self.rng
        batch: Batch = self.any(Batch, lambda: Batch(rng.choice((1, 4, 64)), n_seq_max=2))
        return batch

    def chain(self) -> SamplerChain:
        chain: SamplerChain = self.any(SamplerChain, lambda: SamplerChain(self.model()))
        return chain

    def grammar(self) -> Grammar:
        def make() -> Grammar:
            triggers = self.rng.choice(((), (), ("a",), ("ab", "b")))
            return Grammar(self.model(), self.rng.choice(GRAMMARS), triggers=triggers)

        grammar: Grammar = self.any(Grammar, make)
        return grammar

    def candidates(self) -> Candidates:
        candidates: Candidates = self.any(Candidates, lambda: Candidates(self.model()))
        return candidates

    # Decoding

    def decode(self) -> None:
        context, batch, rng = self.context(), self.batch(), self.rng
        if rng.random() < 0.8:
            seq = self.odd(*range(context.n_seq_max))
            n = rng.choice((1, 1, 2, 5, batch.n_tokens_max))
            top = context.memory.seq_pos_max(seq) + 1
            pos = self.odd(top, top, top, top, 0, top + 1, max(top - 1, 0))
            batch.fill([self.odd(rng.randrange(100)) for _ in range(n)], pos, seq)
        self.log(f"    {len(batch)} tokens, wanted {batch.wanted!r}, starts {batch.starts()}")
        (context.encode if rng.random() < 0.15 else context.decode)(batch)

    do_decode = do_decode_2 = do_decode_3 = do_decode_4 = do_decode_5 = decode

    def do_fill(self) -> None:
        batch = self.batch()
        for _ in range(self.rng.randrange(6)):
            seqs = self.rng.choice(([0], [1], [0, 1], [2], [0, 0], []))
            batch.add(self.odd(1, 5, 200), self.odd(0, 1, 2, 3), seqs, self.rng.random() < 0.5)

    def do_batch(self) -> None:
        batch = self.batch()
        self.rng.choice((batch.clear, batch.want_all, lambda: batch.advance(5, self.odd(3))))()

    def do_abort(self) -> None:
        flag = self.context().abort_flag
        (flag.clear if flag.is_set else flag.set)()

    def do_clear_flags(self) -> None:
        for context in self.objects.get(Context, []):
            context.abort_flag.clear()

    def do_outputs(self) -> None:
        context, i = self.context(), self.odd(-1, 0, -2, 3)
        what = self.rng.choice((context.logits, context.embedding, context.sequence_embedding))
        float(what(i).sum())

    def do_switch(self) -> None:
        context, on = self.context(), self.rng.random() < 0.5
        vector = np.full((max(context.model.n_layer - 1, 0), context.model.n_embd), 0.1)
        switches: tuple[Callable[[], object], ...] = (
            lambda: context.set_embeddings(on),
            lambda: context.set_causal_attn(on),
            lambda: context.set_threads(self.odd(1, 2), self.odd(0, 1)),
            context.reset_perf,
            lambda: context.perf,
            context.synchronize,
            lambda: context.set_control_vector(vector if on else None, self.odd(1)),
        )
        number = self.rng.randrange(len(switches))
        self.log(f"    {number} {on}")
        switches[number]()

    # Memory

    def memory(self) -> None:
        context = self.context()
        memory, seqs = context.memory, range(context.n_seq_max)
        seq, other = self.odd(*seqs), self.odd(*seqs)
        p0, p1 = self.odd(-1, 0, 1, 2, 5), self.odd(-1, -1, 2, 5, 9)
        calls: tuple[Callable[[], object], ...] = (
            lambda: memory.clear(p0 == 0),
            lambda: memory.seq_rm(seq, p0, p1),
            lambda: memory.seq_rm(-1, p0),
            lambda: memory.seq_cp(seq, other, p0, p1),
            lambda: memory.seq_cp(seq, other),
            lambda: memory.seq_keep(seq),
            lambda: memory.seq_add(seq, p0, p1, self.odd(1, -1, 3, 7)),
            lambda: memory.seq_div(seq, p0, p1, self.odd(1, 2, 3)),
            lambda: (memory.seq_pos_min(seq), memory.can_truncate(seq, p0)),
            memory.defrag,
            lambda: memory.can_shift,
        )
        number = self.rng.randrange(len(calls))
        self.log(f"    {number}")
        calls[number]()

    do_memory = do_memory_2 = do_memory_3 = memory

    def do_save(self) -> None:
        context = self.context()
        seq = self.odd(None, *range(context.n_seq_max))
        self.states = [*self.states[-3:], context.save_state([1, 2], seq_id=seq)]

    def load(self) -> None:
        context, rng = self.context(), self.rng
        data = rng.choice(self.states or [b""])
        if data and rng.random() < 0.2:
            data = data[: rng.randrange(len(data))]
        if data and rng.random() < 0.2:
            at = rng.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        context.load_state(data, seq_id=self.odd(None, *range(context.n_seq_max)))

    do_load = do_load_2 = load

    def do_adapter(self) -> None:
        context = self.context()
        adapters: list[LoraAdapter] = self.objects.setdefault(LoraAdapter, [])
        if len(adapters) < 3:
            adapters.append(LoraAdapter(context.model, self.lora))
        chosen = self.rng.sample(adapters, self.rng.randrange(len(adapters) + 1))
        context.set_adapters({a: self.real(-2, 2) for a in chosen})

    def do_drop_adapter(self) -> None:
        adapter = self.any(LoraAdapter)
        self.objects[LoraAdapter] = [a for a in self.objects[LoraAdapter] if a is not adapter]
        if self.rng.random() < 0.7:
            adapter.close()

    # Sampling

    def do_add(self) -> None:
        chain, real, odd = self.chain(), self.real, self.odd
        if len(chain) > 6:
            chain.close()
        adds: tuple[Callable[[], object], ...] = (
            chain.add_greedy,
            lambda: chain.add_dist(odd(1, 2)),
            lambda: chain.add_top_k(odd(1, 5, 40)),
            lambda: chain.add_top_p(real(0, 1), odd(0, 1, 5)),
            lambda: chain.add_min_p(real(0, 1), odd(0, 1, 5)),
            lambda: chain.add_typical(real(0, 1), odd(0, 1, 5)),
            lambda: chain.add_temp(real(0, 3)),
            lambda: chain.add_temp_ext(real(0, 3), real(0, 3), real(0, 3)),
            lambda: chain.add_xtc(real(0, 1), real(0, 0.5), odd(0, 1), odd(1)),
            lambda: chain.add_top_n_sigma(real(0, 3)),
            lambda: chain.add_mirostat(odd(1), real(0, 9), real(0, 1), odd(2, 100)),
            lambda: chain.add_mirostat_v2(odd(1), real(0, 9), real(0, 1)),
            lambda: chain.add_adaptive_p(real(-1, 1), real(0, 1), odd(1)),
            lambda: chain.add_penalties(odd(0, 4, 64), real(0, 2), real(-1, 1), real(-1, 1)),
            lambda: chain.add_dry(real(0, 2), real(1, 2), odd(0, 2), odd(-1, 0, 64)),
            lambda: chain.add_logit_bias({odd(1, 2): real(-9, 9), odd(5): -math.inf}),
            chain.add_infill,
            lambda: chain.add_grammar(self.grammar()),
            lambda: chain.add_custom(self.custom(chain)),
        )
        number = self.rng.randrange(len(adds))
        self.log(f"    add {number}")
        adds[number]()

    def custom(self, chain: SamplerChain) -> CustomSampler:
        rng, depth = self.rng, [0]

        def hook(*args: Any) -> Any:
            depth[0] += 1
            try:
                if args and not isinstance(args[0], int) and rng.random() < 0.3:
                    number = rng.choice((0.0, 9.0, -math.inf, math.nan, math.inf))
                    args[0]["logit"][rng.randrange(len(args[0]))] = number
                if args and not isinstance(args[0], int) and rng.random() < 0.1:
                    args[0]["id"] = rng.choice((0, 5, -1, 2**31 - 1))
                if rng.random() < 0.03:
                    raise ZeroDivisionError
                if depth[0] < 3 and rng.random() < 0.3:
                    self.step()  # anything at all, also closing what calls this
                if args and not isinstance(args[0], int) and rng.random() < 0.5:
                    return int(args[0]["id"][0])
                return None
            finally:
                depth[0] -= 1

        hooks = {n: hook for n in ("apply", "accept", "reset") if rng.random() < 0.5}
        return CustomSampler(chain.model, **hooks)

    def sample(self) -> None:
        chain, context = self.chain(), self.context()
        for _ in range(self.rng.randrange(4)):
            try:
                chain.sample(context, self.odd(-1, -1, -1, 0, 2))
            except ZeroDivisionError:
                continue

    do_sample = do_sample_2 = do_sample_3 = sample

    def do_chain(self) -> None:
        chain, token = self.chain(), self.odd(1, 5, 97)
        candidates = self.candidates()
        calls: tuple[Callable[[], object], ...] = (
            chain.reset,
            lambda: chain.accept(token, grammar=self.rng.random() < 0.5),
            lambda: chain.apply(candidates),
            lambda: chain.choose(candidates),
            lambda: (chain.names, chain.seed),
        )
        try:
            self.rng.choice(calls)()
        except ZeroDivisionError:
            return

    def do_candidates(self) -> None:
        candidates, rng = self.candidates(), self.rng
        n = candidates.n_vocab
        logits = np.random.default_rng(rng.randrange(99)).normal(0, 3, n)
        if rng.random() < 0.7:
            kind = rng.choice((np.float32, np.float64, np.float16, np.int64, np.bool_, object))
            candidates.fill(logits.astype(kind))
        array = candidates.array
        if len(array):
            field = rng.choice(("id", "logit", "p"))
            values = (0, 5, -1, 2**31 - 1) if field == "id" else (0, 1, -math.inf, math.nan, 1e38)
            array[field][rng.randrange(len(array))] = rng.choice(values)
        if rng.random() < 0.5:
            candidates.changed()

    def do_grammar(self) -> None:
        grammar, token = self.grammar(), self.odd(64, 65, 66, 258, 16)
        calls: tuple[Callable[[], object], ...] = (
            lambda: grammar.allows(token),
            lambda: grammar.accept(token),
            lambda: grammar.apply(self.candidates()),
            grammar.reset,
            lambda: (grammar.complete, grammar.ended, grammar.waiting),
        )
        self.rng.choice(calls)()

    def do_vocab(self) -> None:
        vocab, rng = self.model().vocab, self.rng
        text = "".join(rng.choice("a \n\u00e9\U0001f600\0<|im_end|>\ud800") for _ in range(9))
        vocab.detokenize(vocab.tokenize(text, rng.random() < 0.5, rng.random() < 0.5))
        token = self.odd(1, 258)
        (vocab.token_to_piece(token), vocab.text(token), vocab.score(token), vocab.attr(token))

    # Lives

    def do_close(self) -> None:
        kinds = (Context, SamplerChain, Grammar, SamplerChain, Grammar, Context, Model)
        self.any(self.rng.choice(kinds)).close()

    def do_drop(self) -> None:
        have = self.rng.choice(list(self.objects.values()) or [[]])
        if have:
            dropped = have.pop(self.rng.randrange(len(have)))
            if self.rng.random() < 0.5:
                ring: list[object] = [dropped]
                ring.append(ring)
        if self.rng.random() < 0.2:
            gc.collect()

    def do_keep_until_exit(self) -> None:
        everything = [o for have in self.objects.values() for o in have]
        if everything and len(self.keep) < 9:
            self.keep.append([self.rng.choice(everything), self.keep])
