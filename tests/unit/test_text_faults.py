"""Whether the text or the backend caused a failed embedding, determined with another text and a repetition."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from api.backends.embedder import OTHER_TEXT, UNCLEAR, embedded_or_blamed
from api.errors import UpstreamError, UpstreamFault
from api.values import Retry

Asked = list[tuple[str, Retry]]


async def outcome(kind: UpstreamFault, *, bad: str, times: int = 100) -> tuple[str | UpstreamFault, Asked]:
    """Returns the result for "a" if texts with `bad` fail this often, and the calls that were made."""
    asked: Asked = []

    async def embed(texts: Sequence[str], retry: Retry) -> str:
        asked.append((texts[0], retry))
        if bad in texts[0] and sum(bad in text for text, _ in asked) <= times:
            raise UpstreamError(kind, "it failed")
        return texts[0]

    try:
        return await embedded_or_blamed(embed, ["a"], "here"), asked
    except UpstreamError as error:
        return error.fault, asked


@pytest.mark.parametrize("kind", sorted(UNCLEAR))
async def test_a_text_that_fails_twice_while_another_works_is_at_fault(kind: UpstreamFault) -> None:
    told, asked = await outcome(kind, bad="a")
    assert told is UpstreamFault.TEXT_NOT_EMBEDDED
    assert asked == [("a", "here"), (OTHER_TEXT, "spent"), ("a", "spent")]


@pytest.mark.parametrize("kind", sorted(UNCLEAR))
async def test_if_no_text_works_the_backend_is_at_fault(kind: UpstreamFault) -> None:
    told, asked = await outcome(kind, bad="")
    assert (told, len(asked)) == (kind, 2)


async def test_a_single_crash_of_the_runner_fails_no_answer() -> None:
    told, asked = await outcome(UpstreamFault.EMBED_FAILED, bad="a", times=1)
    assert (told, len(asked)) == ("a", 3)


@pytest.mark.parametrize("kind", sorted(set(UpstreamFault) - UNCLEAR))
async def test_faults_that_no_text_can_cause_are_not_probed(kind: UpstreamFault) -> None:
    told, asked = await outcome(kind, bad="a")
    assert (told, len(asked)) == (kind, 1)
