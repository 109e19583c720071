from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child

from llama_cffi.binding import (
    Batch,
    Candidates,
    Context,
    CustomSampler,
    Grammar,
    Model,
    SamplerChain,
)
from llama_cffi.errors import GenerationError, ValidationError


class Oops(BaseException):
    """Not a subclass of Exception."""


def test_every_accepted_token_is_seen(context: Context, chain: SamplerChain) -> None:
    seen: list[int] = []
    sampler = CustomSampler(chain.model, name="tap", accept=seen.append, reset=seen.clear)
    chain.add_penalties(8, 1.5).add_dist(1).add_custom(sampler)
    assert chain.names == ["penalties", "dist", "tap"]
    drawn = [chain.sample(context) for _ in range(10)]
    assert seen == drawn
    chain.accept(7)
    assert seen == [*drawn, 7]
    chain.reset()
    assert seen == []
    assert [chain.sample(context) for _ in range(10)] == drawn


def test_a_function_that_decodes_changes_no_choice(model: Model) -> None:
    """The grammar reads the logits again after the function ran, and they must be unchanged."""
    batch, calls = Batch(1), []

    def decode_once(_: Any) -> None:
        if not calls:
            batch.fill([50], 1)
            context.decode(batch)
        calls.append(1)

    with Context(model, n_ctx=64, n_threads=1) as context, SamplerChain(model) as chain:
        batch.fill([1], 0)
        context.decode(batch)
        before = context.logits()
        letters = [t for t in range(259) if model.vocab.token_to_piece(t).islower()]
        chain.add_custom(CustomSampler(model, apply=decode_once)).add_greedy()
        chain.add_grammar(Grammar(model, "root ::= [a-z]+"))
        assert before.argmax() not in letters
        assert chain.sample(context) == letters[before[letters].argmax()]
        after = context.logits()
        assert len(calls) == 2
        assert letters[after[letters].argmax()] != letters[before[letters].argmax()]


def test_candidates_before_other_samplers_are_the_vocabulary(
    context: Context, chain: SamplerChain
) -> None:
    arrays: list[Any] = []
    chain.add_custom(CustomSampler(chain.model, apply=lambda a: arrays.append(a.copy())))
    chain.add_greedy()
    assert chain.sample(context) == context.logits().argmax()
    assert arrays[0]["id"].tolist() == list(range(259))
    assert (arrays[0]["logit"] == context.logits()).all()


def test_written_logits_count_for_the_samplers_after_it(
    context: Context, chain: SamplerChain
) -> None:
    def swap(candidates: Any) -> None:
        assert candidates["id"].tolist() == best
        candidates["logit"] = candidates["logit"][::-1].copy()

    best = np.argsort(-context.logits())[:5].tolist()
    chain.add_top_k(5).add_custom(CustomSampler(chain.model, apply=swap)).add_top_k(2).add_greedy()
    assert chain.sample(context) == best[-1]  # top-k sorted again


def test_forbidden_tokens(context: Context, chain: SamplerChain) -> None:
    def only_even(candidates: Any) -> None:
        candidates["logit"][candidates["id"] % 2 == 1] = -np.inf

    chain.add_custom(CustomSampler(chain.model, apply=only_even)).add_temp(3).add_dist(1)
    assert {chain.sample(context) % 2 for _ in range(100)} == {0}


def test_selecting(context: Context, chain: SamplerChain) -> None:
    chain.add_top_k(9).add_custom(CustomSampler(chain.model, apply=lambda a: a["id"][-1]))
    order = np.argsort(-context.logits())
    assert chain.sample(context) == order[8]


def test_selecting_after_greedy_wins(context: Context, chain: SamplerChain) -> None:
    chain.add_greedy().add_custom(CustomSampler(chain.model, apply=lambda a: 200))
    assert chain.sample(context) == 200  # although greedy alone needs only one token


@pytest.mark.parametrize(
    ("chosen", "error"),
    [
        (300, GenerationError),  # none of the 9
        (-1, ValidationError),
        (1.0, ValidationError),
        ("x", ValidationError),
    ],
)
def test_selecting_a_token_that_is_not_a_candidate(
    context: Context, chain: SamplerChain, chosen: Any, error: type[Exception]
) -> None:
    sampler = CustomSampler(chain.model, name="odd", apply=lambda a: chosen)
    chain.add_top_k(9).add_custom(sampler)
    with pytest.raises(error, match="odd"):
        chain.sample(context)


def test_nothing_selected(context: Context, chain: SamplerChain) -> None:
    chain.add_custom(CustomSampler(chain.model, apply=lambda a: None))
    with pytest.raises(GenerationError, match="no sampler selected"):
        chain.sample(context)


@pytest.mark.parametrize("error", [RuntimeError("a"), KeyboardInterrupt(), Oops()])
@pytest.mark.parametrize("hook", ["apply", "accept", "reset"])
def test_exceptions_reach_the_caller(
    context: Context, chain: SamplerChain, hook: str, error: BaseException
) -> None:
    armed = True

    def fail(*_: object) -> None:
        if armed:
            raise error

    sampler = CustomSampler(chain.model, **{hook: fail})  # type: ignore[arg-type]
    chain.add_top_k(20).add_custom(sampler).add_temp(1.5).add_typical(0.9).add_dist(3)
    call = chain.reset if hook == "reset" else lambda: chain.sample(context)
    for _ in range(3):
        with pytest.raises(type(error)) as caught:
            call()
        assert caught.value is error
    armed = False
    assert 0 <= chain.sample(context) < 259  # the chain still works
    chain.reset()


def test_the_first_of_two_exceptions_is_raised(context: Context, chain: SamplerChain) -> None:
    for name in ("first", "second"):

        def fail(_: object, name: str = name) -> None:
            raise RuntimeError(name)

        chain.add_custom(CustomSampler(chain.model, apply=fail))
    with pytest.raises(RuntimeError, match="first"):
        chain.add_greedy().sample(context)
    armed: list[str] = []
    with SamplerChain(chain.model) as other:
        sampler = CustomSampler(chain.model, apply=lambda a: armed.append("called"))
        assert other.add_custom(sampler).add_greedy().sample(context) >= 0
    assert armed == ["called"]


def test_an_exception_in_apply_accepts_nothing(context: Context, chain: SamplerChain) -> None:
    seen: list[int] = []
    chain.add_custom(CustomSampler(chain.model, apply=lambda a: 1 / 0, accept=seen.append))
    with pytest.raises(ZeroDivisionError):
        chain.add_dist(1).sample(context)
    assert seen == []


# Written by a custom sampler -> expected result instead of undefined behavior in C.
BAD_WRITES = """
    import sys
    import numpy as np
    from llama_cffi.binding import Batch, Context, CustomSampler, Model, SamplerChain
    from llama_cffi.binding.sampling.samplers import available

    model = Model(sys.argv[1])
    context = Context(model, n_ctx=32, n_threads=1)
    batch = Batch(1)
    batch.fill([1], 0)
    context.decode(batch)

    def some(field, value):
        def write(a):
            a[field][::3] = value
        return write

    def every(field, value):
        def write(a):
            a[field] = value
        return write

    def also_raise(a):
        a["logit"][::2] = np.nan
        a["id"] = -7
        raise RuntimeError("own")

    writes = [some("logit", np.nan), some("logit", np.inf), every("logit", np.nan),
              every("logit", -np.inf), some("id", -1), some("id", 259), every("id", 2**31 - 1),
              also_raise]
    has = available(model.library)
    after = [("top_k", 200), ("top_p", 0.5), ("min_p", 0.1, 5), ("typical", 0.5), ("xtc", 1, 0.01),
             ("infill",), ("penalties", 5, 1.5), ("logit_bias", {3: 1.0}), ("temp_ext", 1, 0.5),
             ("top_n_sigma", 1.0), ("mirostat", 1), ("mirostat_v2", 1), ("dry", 1.0)]
    for write in writes:
        for kind, *args in after:
            if kind in ("xtc", "infill", "top_n_sigma", "dry") and kind not in has:
                continue
            with SamplerChain(model) as chain:
                chain.add_custom(CustomSampler(model, apply=write))
                getattr(chain, "add_" + kind)(*args)
                if "mirostat" not in kind:
                    chain.add_dist(1)
                try:
                    chain.sample(context)
                except Exception as e:
                    print(type(e).__name__)
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_c_sees_no_bad_writes(build: str, child: Child, tiny_model: Path) -> None:
    done = child(BAD_WRITES, tiny_model, LLAMA_CFFI_BUILD=build)
    assert done.stderr == ""
    kinds = 9 if build == OLD else 13
    names = ["GenerationError"] * 4 + ["ValidationError"] * 3 + ["RuntimeError"]
    assert done.stdout.split() == [name for name in names for _ in range(kinds)]


@pytest.mark.parametrize(
    "make",
    [
        lambda m: CustomSampler(m, apply=1),
        lambda m: CustomSampler(m, accept="x"),
        lambda m: CustomSampler(m, reset=()),
        lambda m: CustomSampler(m, name="a\0b"),
    ],
)
def test_bad_arguments(model: Model, make: Callable[[Model], object]) -> None:
    with pytest.raises(ValidationError):
        make(model)


def test_another_model(tiny_model: Path, chain: SamplerChain) -> None:
    with (
        Model(tiny_model, vocab_only=True) as other,
        pytest.raises(ValidationError, match="another model"),
    ):
        chain.add_custom(CustomSampler(other))
    assert len(chain) == 0


def test_closed(model: Model) -> None:
    chain = SamplerChain(model)
    chain.close()
    with pytest.raises(ValidationError, match="closed"):
        chain.add_custom(CustomSampler(model))


def test_in_two_chains(model: Model, context: Context) -> None:
    seen: list[int] = []
    sampler = CustomSampler(model, accept=seen.append, apply=lambda a: None)
    one = SamplerChain(model).add_custom(sampler).add_greedy()
    two = SamplerChain(model).add_custom(sampler).add_custom(sampler).add_greedy()
    a, b = one.sample(context), two.sample(context)
    assert seen == [a, b, b]
    one.close()
    assert two.sample(context) == b


def test_only_its_chain_applies_it(chain: SamplerChain, model: Model) -> None:
    sampler = CustomSampler(model, apply=lambda a: None)
    chain.add_custom(sampler)
    candidates = Candidates(model)
    candidates.fill(np.zeros(259, np.float32))
    model.library.lib.llama_sampler_apply(chain.ptr, candidates.struct)
    with pytest.raises(ValidationError, match="only be applied by its SamplerChain"):
        sampler.relay.check()


def test_unused_functions_do_not_call_python(model: Model) -> None:
    lib = model.library.lib
    with SamplerChain(model).add_custom(CustomSampler(model)) as chain:
        sampler = lib.llama_sampler_chain_get(chain.ptr, 0)
        ffi = model.library.ffi
        assert sampler.iface.accept == sampler.iface.reset == sampler.iface.free == ffi.NULL
        assert ffi.cast("intptr_t", sampler.iface.apply) == ffi.cast(
            "intptr_t", lib.llama_sampler_get_seed
        )


def test_a_chain_in_a_cycle_with_its_functions_is_collected(model: Model) -> None:
    class Owner:
        def __init__(self) -> None:
            self.chain = SamplerChain(model).add_greedy()
            self.chain.add_custom(CustomSampler(model, accept=self.take, apply=self.look))

        def take(self, token: int) -> None: ...
        def look(self, candidates: Any) -> None: ...

    owner = Owner()
    gone = weakref.ref(owner.chain)
    del owner
    gc.collect()
    assert gone() is None


LIVES = """
    import gc, sys
    from llama_cffi.binding import Batch, Context, CustomSampler, Model, SamplerChain

    model = Model(sys.argv[1])
    context = Context(model, n_ctx=32, n_threads=1)
    batch = Batch(1)
    batch.fill([1], 0)
    context.decode(batch)
    seen = []
    for i in range(1500):
        chain = SamplerChain(model).add_greedy()
        chain.add_custom(CustomSampler(model, accept=seen.append, apply=lambda a: None,
                                       reset=lambda: None))
        chain.add_custom(CustomSampler(model))
        if i % 10 == 0:
            gc.collect()
            chain.sample(context)
            chain.reset()
        if i % 3 == 0:
            chain.close()
    for i in range(50):  # the chain may be freed after the sampler was
        chain = SamplerChain(model).add_custom(CustomSampler(model, name="x" * i))
        chain._customs.clear()
        gc.collect()
        chain.close()
    print(len(seen), len(set(seen)))
    open_chain = SamplerChain(model).add_custom(CustomSampler(model, accept=seen.append))
    closed_with_model = SamplerChain(Model(sys.argv[1]))
    closed_with_model.add_custom(CustomSampler(closed_with_model.model, accept=seen.append))
    closed_with_model.model.close()
    closed_with_model.ring = open_chain.ring = [closed_with_model, open_chain]
    # The rest is freed at exit, in any order.
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_lifetimes(build: str, child: Child, tiny_model: Path) -> None:
    done = child(LIVES, tiny_model, LLAMA_CFFI_BUILD=build, MALLOC_PERTURB_="165")
    assert (done.stdout, done.stderr, done.returncode) == ("150 1\n", "", 0)


CLOSED_INSIDE = """
    import sys
    from llama_cffi.binding import Batch, Context, CustomSampler, Model, SamplerChain
    from llama_cffi.errors import ValidationError

    def run(hook, act):
        model = Model(sys.argv[1])
        context = Context(model, n_ctx=32, n_threads=1)
        batch = Batch(1)
        batch.fill([1], 0)
        context.decode(batch)
        chain = SamplerChain(model)
        chain.add_custom(CustomSampler(model, **{hook: lambda *_: act(model, context, chain)}))
        chain.add_temp(1.5).add_penalties(8, 1.1).add_dist(1)
        for call in (lambda: chain.sample(context), chain.reset, lambda: chain.sample(context)):
            try:
                call()
            except ValidationError as e:
                yield str(e)
        yield len(chain) if not chain.closed else "gone"

    for hook in ("apply", "accept", "reset"):
        for act in (lambda m, c, chain: chain.close(), lambda m, c, chain: m.close(),
                    lambda m, c, chain: [chain.add_temp(1.1) for _ in range(9)]):
            print(hook, *dict.fromkeys(run(hook, act)), sep=", ")
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_functions_that_close_or_change_their_chain(
    build: str, child: Child, tiny_model: Path
) -> None:
    """C objects are freed after the call, and no sampler is added while C iterates over them."""
    done = child(CLOSED_INSIDE, tiny_model, LLAMA_CFFI_BUILD=build, MALLOC_PERTURB_="165")
    closed, longer = "this %s is closed; open a new one", "a chain cannot be changed while"
    assert (done.stderr, done.returncode) == ("", 0)
    lines = done.stdout.splitlines()
    for i, hook in enumerate(["apply", "accept", "reset"]):
        chain, model, add = lines[3 * i : 3 * i + 3]
        assert chain == f"{hook}, {closed % 'SamplerChain'}, gone"
        assert model.startswith(f"{hook}, this ")
        assert model.endswith(", gone")
        assert add.startswith(f"{hook}, {longer}")
        assert int(add.rsplit(", ", 1)[1]) in (4, 5)


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_raw_calls_before_any_object(build: str, child: Child) -> None:
    # cffi 2.1 aborts if it sees these before the struct whose fields have the same types.
    done = child(
        """
        from llama_cffi.binding import get_library
        for name in ("free", "accept", "apply", "name", "reset", "clone"):
            print(getattr(get_library().lib, "llama_sampler_" + name) is not None)
        """,
        LLAMA_CFFI_BUILD=build,
    )
    assert (done.stdout, done.stderr) == ("True\n" * 6, "")
