from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cffi.errors import ContextOverflowError
from llama_cffi.generation.context_policy import (
    POLICIES,
    drop_oldest_turns,
    fit_prompt,
)
from llama_cffi.generation.prompt import Prompt

SIZE = st.integers(0, 300)


@given(
    n=st.integers(1, 300),
    max_tokens=st.integers(1, 300),
    n_ctx=st.integers(1, 300),
    safety=st.integers(0, 40),
    policy=st.sampled_from(POLICIES),
    n_first=st.integers(0, 1),
)
def test_fitted_prompt_leaves_room_for_the_answer(
    n: int, max_tokens: int, n_ctx: int, safety: int, policy: str, n_first: int
) -> None:
    tokens = list(range(n))
    try:
        fit = fit_prompt(Prompt(tokens), max_tokens, n_ctx, safety, policy, n_first=n_first)
    except ContextOverflowError:
        # Refused only where nothing can be dropped, or the policy drops nothing.
        assert not policy.startswith("truncate") or n_ctx - safety <= n_first + 1
        assert n + safety >= n_ctx
        return
    assert 1 <= fit.max_tokens <= max_tokens
    assert len(fit.prompt) + fit.n_truncated == n
    assert len(fit.prompt) < n_ctx - safety
    if policy != "shift":
        assert len(fit.prompt) + fit.max_tokens + safety <= n_ctx
    else:
        assert fit.max_tokens == max_tokens
    if not fit.n_truncated:
        assert fit.prompt == tokens
        return
    # The answer has max_tokens, or about half of the context.
    assert fit.max_tokens >= min(max_tokens, (n_ctx - safety) // 2)
    assert fit.prompt[-1] == tokens[-1]
    gaps = [i for i in range(1, len(fit.prompt)) if fit.prompt[i] != fit.prompt[i - 1] + 1]
    assert len(gaps) <= 1
    if policy == "truncate_left" and n_first:
        assert fit.prompt[0] == 0
    if policy == "truncate_middle" and len(fit.prompt) > 1:
        assert fit.prompt[0] == 0
        assert abs(gaps[0] - len(fit.prompt) / 2) <= 0.5


def test_fit_prompt_examples() -> None:
    tokens = list(range(100))
    left = fit_prompt(Prompt(tokens), 10, 64, 4, "truncate_left", n_first=1)
    assert left.prompt == [0, *range(51, 100)]
    assert (left.n_truncated, left.max_tokens) == (50, 10)
    middle = fit_prompt(Prompt(tokens), 10, 64, 4, "truncate_middle")
    assert middle.prompt == [*range(25), *range(75, 100)]
    short = fit_prompt(Prompt(tokens[:30]), 100, 64, 4, "error")
    assert (short.prompt, short.max_tokens) == (tokens[:30], 30)
    assert fit_prompt(Prompt(tokens[:30]), 100, 64, 4, "shift").max_tokens == 100


def test_overflow_error_has_the_counts() -> None:
    with pytest.raises(ContextOverflowError, match=r"no room.*100 tokens.*64.*16.*n_ctx > 116"):
        fit_prompt(Prompt(range(100)), 10, 64, 16, "error")


turn = st.lists(st.sampled_from(["assistant", "tool"]), max_size=2).map(
    lambda rest: ["user", *rest]
)


@given(
    st.lists(st.just("system"), max_size=2),
    st.lists(turn, min_size=1, max_size=8),
    st.lists(st.integers(1, 40), min_size=30, max_size=30),
    st.one_of(st.none(), st.integers(-1, 300)),
    st.integers(40, 400),
)
def test_drops_the_fewest_turns(
    system: list[str], turns: list[list[str]], sizes: list[int], max_tokens: int | None, n_ctx: int
) -> None:
    roles = [*system, *(role for turn in turns for role in turn)]
    messages = [{"role": role, "size": size} for role, size in zip(roles, sizes, strict=False)]

    def length(some: object) -> int:
        return sum(message["size"] for message in some)  # type: ignore[attr-defined]

    kept = drop_oldest_turns(messages, length, max_tokens, n_ctx)
    n, capacity = len(system), n_ctx
    wanted = capacity // 2 if max_tokens in (None, -1) else min(max_tokens, capacity // 2)  # type: ignore[type-var]
    # Candidates: all turns, all but the first, ...
    choices = [
        [*messages[:n], *messages[n + sum(map(len, turns[:k])) :]] for k in range(len(turns))
    ]
    fitting = [c for c in choices if length(c) <= capacity - wanted]
    assert kept == (fitting[0] if fitting else choices[-1])
