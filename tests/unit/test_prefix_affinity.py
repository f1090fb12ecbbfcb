"""The choice of a backend by what it has read: blocks, what they are worth, and the bound on load."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.backends.affinity import (
    LARGE_BODY,
    LEAST,
    MAX_BLOCKS,
    SMALL_BLOCK,
    PrefixAffinity,
    PromptPrefix,
    parts_of,
    prefix_of,
    reason_for,
    worths,
)
from api.backends.choice import BackendState, Preference, in_order
from api.errors import StoreUnavailable
from api.ports.coordination import Known
from api.ports.telemetry import PrefixChoice, Telemetry
from api.values import ChatMessage, ForwardedRequest, Generation, GenerationEnd, GenerationRequest, Usage

KEY, DIGITS = b"k" * 16, 16
WORTH, LIMIT = 2.0, 4


def prefix(*parts: bytes, key: bytes = KEY, model: str = "m") -> PromptPrefix:
    return prefix_of(key, model, parts)


def in_common(one: PromptPrefix, other: PromptPrefix) -> int:
    """How many digests are equal at the beginning."""
    pairs = zip(_digests(one), _digests(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _digests(found: PromptPrefix) -> list[str]:
    return [found.chain[at : at + DIGITS] for at in range(0, len(found.chain), DIGITS)]


texts = st.binary(max_size=3 * SMALL_BLOCK)


@given(shared=st.lists(texts, max_size=3), one=texts, other=texts)
def test_two_prompts_match_as_far_as_they_are_the_same(shared: list[bytes], one: bytes, other: bytes) -> None:
    first, second = prefix(*shared, one), prefix(*shared, other)
    whole = b"".join(shared)
    same = len(whole) + next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    matched = second.matched(in_common(first, second))
    assert len(whole) <= matched <= same
    assert matched > same - SMALL_BLOCK or one == other


def test_the_digests_depend_on_the_key_and_the_model() -> None:
    texts = (b"You are a helpful assistant.", b"Hello")
    assert in_common(prefix(*texts), prefix(*texts)) == 2
    assert in_common(prefix(*texts), prefix(*texts, key=b"other")) == 0
    assert in_common(prefix(*texts), prefix(*texts, model="other")) == 0


def test_a_huge_prompt_has_a_bounded_chain() -> None:
    huge = prefix(b"x" * 50_000_000)
    assert huge.is_full
    assert len(huge.chain) == MAX_BLOCKS * DIGITS
    tiny = prefix(*(b"x" for _ in range(100_000)))
    assert len(tiny.chain) == MAX_BLOCKS * DIGITS


def forwarded(body: bytes, path: str = "/v1/chat/completions") -> GenerationRequest:
    return GenerationRequest("m", (), forwarded=ForwardedRequest(path, body, "0" * 64, streams=False))


def test_a_forwarded_conversation_continues_whatever_else_changes() -> None:
    turns = [{"role": "user", "content": "x" * 600}]
    more = [*turns, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}]
    first = prefix(*parts_of(forwarded(orjson.dumps({"seed": 1, "messages": turns, "tools": [{"type": "f"}]}))))
    second = prefix(*parts_of(forwarded(orjson.dumps({"tools": [{"type": "f"}], "messages": more, "seed": 2}))))
    assert in_common(first, second) == first.prompt_blocks == 4


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x" * 600},
        {"input": "x" * 600},
        {"input": [{"role": "user", "content": "x" * 600}], "instructions": "be brief"},
        {"messages": [1, None, "x" * 600]},
    ],
)
def test_every_form_of_a_prompt_has_blocks(body: dict[str, object]) -> None:
    assert prefix(*parts_of(forwarded(orjson.dumps(body)))).size >= 600


def test_a_body_too_deep_to_write_is_compared_as_it_came() -> None:
    body = b'{"messages":[' + b"[" * 600 + b"]" * 600 + b"]}"
    assert b"".join(parts_of(forwarded(body))) == body


def test_a_large_body_is_compared_as_it_came() -> None:
    body = orjson.dumps({"seed": 1, "messages": [{"role": "user", "content": "x" * LARGE_BODY}]})
    assert list(parts_of(forwarded(body))) == [body]


def test_no_more_of_a_prompt_is_read_than_has_room() -> None:
    parts = iter([b"x" * 100] * 100_000)
    prefix_of(KEY, "m", parts)
    assert len(list(parts)) == 100_000 - MAX_BLOCKS


# -- the decision ------------------------------------------------------------------------------------------------------

NAMES = "abc"
PROMPT = prefix(*(bytes([number]) * SMALL_BLOCK for number in range(10)))
knowns = st.builds(
    Known,
    blocks=st.integers(0, 10),
    continues=st.booleans(),
    crowded=st.floats(0, 1),
    calls=st.integers(0, 2 * LIMIT),
)
fleets = st.lists(knowns, min_size=2, max_size=3)


def chosen(fleet: Sequence[Known], turn: int = 0, worth: float = WORTH) -> str:
    known = dict(zip(NAMES, fleet, strict=False))
    values = worths(PROMPT, known)
    states = [
        BackendState(
            name,
            outstanding=one.calls,
            preference=Preference(worth * values[name], one.crowded, one.calls, LIMIT),
        )
        for name, one in known.items()
    ]
    return in_order(states, turn)[0]


@given(fleet=fleets, turn=st.integers(0, 5))
def test_a_backend_is_busier_than_another_by_a_bounded_number_of_calls(fleet: list[Known], turn: int) -> None:
    known = dict(zip(NAMES, fleet, strict=False))
    calls = known[chosen(fleet, turn)].calls
    least = min(one.calls for one in fleet)
    assert calls <= least + WORTH
    assert calls < LIMIT or least >= LIMIT, "one without a free permit comes after all that have one"


@given(fleet=fleets, turn=st.integers(0, 5), calls=st.integers(0, LIMIT - 1))
def test_of_equally_busy_backends_the_one_that_continues_the_prompt_is_chosen(
    fleet: list[Known], turn: int, calls: int
) -> None:
    others = [Known(min(one.blocks, 8), one.continues, one.crowded, calls) for one in fleet[1:]]
    assert chosen([Known(10, True, 1.0, calls), *others], turn) == "a"


@given(calls=st.lists(st.integers(0, 9), min_size=2, max_size=3), turn=st.integers(0, 5))
def test_without_knowledge_the_least_busy_is_chosen(calls: list[int], turn: int) -> None:
    fleet = [Known(calls=one) for one in calls]
    assert calls[NAMES.index(chosen(fleet, turn))] == min(calls)


@given(fleet=fleets)
def test_what_a_backend_knows_is_worth_between_nothing_and_the_whole(fleet: list[Known]) -> None:
    found = worths(PROMPT, dict(zip(NAMES, fleet, strict=False)))
    assert all(0.0 <= value <= 1.0 for value in found.values())


def test_a_crowded_backend_is_not_worth_a_shared_system_prompt() -> None:
    crowded, empty = Known(8, False, 1.0), Known()
    assert chosen([crowded, empty], 0) == chosen([crowded, empty], 1) == "b"
    assert chosen([Known(8, True, 1.0), empty], 0) == "a", "but it is worth a conversation"
    assert chosen([Known(8, False, 0.25), empty], 1) == "a", "and it has room for this one"
    assert chosen([crowded, Known(crowded=1.0)], 1) == "a", "and the other one is just as crowded"


def test_a_popular_prompt_goes_to_all_backends() -> None:
    """Each call shares eight of ten blocks with all others, and nobody waits for anybody."""
    prompts: Counter[str] = Counter()
    for turn in range(30):
        fleet = [Known(8 if prompts[name] else 0, False, min(prompts[name], LIMIT) / LIMIT) for name in NAMES]
        prompts[chosen(fleet, turn)] += 1
    assert min(prompts[name] for name in NAMES) >= 8


@pytest.mark.parametrize(
    ("backend", "worth", "reason"),
    [
        ("a", {"a": 0.0, "b": 0.0}, "unknown"),
        ("a", {"a": 0.5, "b": 0.2}, "prefix"),
        ("b", {"a": 0.5, "b": 0.2}, "load"),
        ("c", {"a": 0.5}, "load"),
        ("a", {}, "unknown"),
    ],
)
def test_the_reason_of_a_choice(backend: str, worth: dict[str, float], reason: PrefixChoice) -> None:
    assert reason_for(backend, worth) == reason


# -- without Redis -----------------------------------------------------------------------------------------------------


class Lost(Telemetry):
    """A store that is down, and the choices that were counted."""

    def __init__(self) -> None:
        self.counted: list[tuple[str, int, int]] = []
        self.asked = 0

    async def agree(self, key: str) -> str:
        self.asked += 1
        raise StoreUnavailable("down")

    async def look_up(self, chain: str) -> dict[str, Known]:
        self.asked += 1
        raise StoreUnavailable("down")

    async def record(self, backend: str, model: str, chain: str, prompt_blocks: int, *, key: str, alone: bool) -> str:
        raise StoreUnavailable("down")

    def prefix_chosen(self, reason: PrefixChoice, matched: int, size: int) -> None:
        self.counted.append((reason, matched, size))


async def test_without_redis_only_the_load_counts() -> None:
    lost = Lost()
    affinity = PrefixAffinity(lost, WORTH, LIMIT, lost)
    assert await affinity.look_up(GenerationRequest("m", (ChatMessage("user", "x" * LEAST),))) is None
    assert [(reason, matched) for reason, matched, _ in lost.counted] == [("unavailable", 0)]


async def test_a_short_prompt_asks_nobody() -> None:
    lost = Lost()
    affinity = PrefixAffinity(lost, WORTH, LIMIT, lost)
    assert await affinity.look_up(GenerationRequest("m", (ChatMessage("user", "x" * 100),))) is None
    assert lost.asked == 0


class Fleet(Lost):
    """A store with the key of the fleet."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[tuple[str, str, int, bool, str]] = []
        self.chains: list[str] = []

    async def agree(self, key: str) -> str:
        assert key != "4" * 32
        return "4" * 32

    async def look_up(self, chain: str) -> dict[str, Known]:
        self.chains.append(chain)
        return {"a": Known(1, True), "b": Known()}

    async def record(self, backend: str, model: str, chain: str, prompt_blocks: int, *, key: str, alone: bool) -> str:
        self.recorded.append((backend, model, prompt_blocks, alone, key))
        return "5" * 32


def said(text: str, load_duration: float) -> Generation:
    return Generation(text, GenerationEnd("m", "stop", Usage(), load_duration=load_duration), 0.1, backend="a")


async def test_a_worker_takes_the_fleets_key_at_first_and_when_it_changes() -> None:
    fleet = Fleet()
    affinity = PrefixAffinity(fleet, WORTH, LIMIT, fleet)
    request = GenerationRequest("m", (ChatMessage("user", "x" * LEAST),))
    for load_duration in (2.0, 0.04):
        placed = await affinity.look_up(request)
        assert placed is not None
        affinity.answered(placed, request, said("yes", load_duration))
        await _done(affinity)
    (first, second) = fleet.recorded
    assert first == ("a", "m:latest", 3, True, "4" * 32)
    assert second == ("a", "m:latest", 3, False, "5" * 32)
    assert fleet.chains[0] != fleet.chains[1]
    assert [reason for reason, _, _ in fleet.counted] == ["prefix", "prefix"]


async def _done(affinity: PrefixAffinity) -> None:
    for task in list(affinity._recording):
        await task
