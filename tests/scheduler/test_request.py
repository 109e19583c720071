"""Request: its attributes and its states."""

from __future__ import annotations

import itertools
import time

import pytest

from llama_cffi import Request, RequestState, SamplingParams, ValidationError

PENDING, ENCODING, PREFILLING, DECODING = (
    RequestState.PENDING,
    RequestState.ENCODING,
    RequestState.PREFILLING,
    RequestState.DECODING,
)
FINISHED, FAILED, CANCELLED = RequestState.FINISHED, RequestState.FAILED, RequestState.CANCELLED
WAYS = {
    PENDING: {ENCODING, PREFILLING, FAILED, CANCELLED},
    ENCODING: {PENDING, FAILED, CANCELLED},
    PREFILLING: {DECODING, PENDING, FAILED, CANCELLED},
    DECODING: {FINISHED, PENDING, FAILED, CANCELLED},
    FINISHED: set(),
    FAILED: set(),
    CANCELLED: set(),
}
# The transitions into each state.
PATHS = {
    PENDING: [],
    ENCODING: [ENCODING],
    PREFILLING: [PREFILLING],
    DECODING: [PREFILLING, DECODING],
    FINISHED: [PREFILLING, DECODING, FINISHED],
    FAILED: [FAILED],
    CANCELLED: [CANCELLED],
}


@pytest.mark.parametrize(("start", "end"), [*itertools.product(RequestState, repeat=2)])
def test_every_transition(start: RequestState, end: RequestState) -> None:
    request = Request([1], id="r")
    for state in PATHS[start]:
        request.move(state)
    if end in WAYS[start]:
        request.move(end)
        assert request.state is end
    else:
        with pytest.raises(ValidationError, match=f"r is {start.value}; it cannot be {end.value}"):
            request.move(end)
        assert request.state is start


@pytest.mark.parametrize("state", RequestState)
def test_final_states(state: RequestState) -> None:
    assert state.final == (not WAYS[state]) == (state in {FINISHED, FAILED, CANCELLED})
    request = Request([1])
    for step in PATHS[state]:
        request.move(step)
    assert request.finished == state.final


def test_a_new_request() -> None:
    before = time.monotonic()
    prompt = [3, 4, 5]
    request = Request(prompt)
    prompt.append(6)
    assert request.prompt_tokens == (3, 4, 5)
    assert request.tokens == [3, 4, 5]
    assert request.generated_tokens == []
    assert (request.n_generated, request.num_computed_tokens, request.draft) == (0, 0, [])
    assert (request.state, request.finished) == (PENDING, False)
    assert (request.seq_id, request.deadline_s, request.error, request.lora_key) == (None,) * 4
    assert (request.max_tokens, request.priority, request.stop) == (256, 0, ())
    assert request.sampling == SamplingParams()
    assert request.stats.n_prompt == 3
    assert before <= request.created_s <= time.monotonic()


def test_its_arguments() -> None:
    sampling = SamplingParams(temperature=0.5)
    request = Request(
        (1,),
        7,
        sampling,
        stop=["a", "b"],
        priority=-2,
        timeout_s=1.5,
        callback=print,
        lora_key="g",
        n_draft=3,
        id="mine",
    )
    assert (request.max_tokens, request.sampling, request.stop) == (7, sampling, ("a", "b"))
    assert (request.priority, request.lora_key, request.id) == (-2, "g", "mine")
    assert (request.callback, request.n_draft) == (print, 3)
    assert request.deadline_s == request.created_s + 1.5


def test_group_is_a_deprecated_alias_of_lora_key() -> None:
    with pytest.warns(DeprecationWarning, match="group is now called lora_key"):
        request = Request([1], group="g")  # type: ignore[call-arg]
    assert request.lora_key == "g"
    with pytest.raises(TypeError, match="pass lora_key only"):
        Request([1], group="g", lora_key="h")  # type: ignore[call-arg]


def test_the_answer_follows_the_prompt() -> None:
    request = Request([1, 2])
    request.tokens += [8, 9]
    assert request.generated_tokens == [8, 9]
    assert request.n_generated == 2
    assert request.prompt_tokens == (1, 2)


def test_default_ids_are_numbered() -> None:
    first, second = Request([1]), Request([1])
    assert first.id == f"request-{first.number}"
    assert second.number == first.number + 1


def test_repr() -> None:
    request = Request([1, 2], id="r")
    request.tokens.append(3)
    request.num_computed_tokens = 2
    assert repr(request) == "<Request r pending 2+1 tokens, 2 computed>"


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValidationError, match="prompt is empty"):
        Request([])


@pytest.mark.parametrize("n", [0, -1])
def test_max_tokens_below_one_is_refused(n: int) -> None:
    with pytest.raises(ValidationError, match=f"max_tokens={n} is below 1"):
        Request([1], n)
