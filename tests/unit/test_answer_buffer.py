"""A growing answer and its readers: failures, slow readers and cancellation."""

from __future__ import annotations

import asyncio

import pytest

from api.errors import BreakerOpen, UpstreamError
from api.single_flight.buffer import AHEAD, AnswerBuffer, Reader, Tail
from api.values import CompletedAnswer, GroundedSources, Queued, Source, StoredElsewhere, Token, Usage


def completed(text: str) -> CompletedAnswer:
    return CompletedAnswer(text, "llama3.2", Usage(1, 2))


async def all_of(reader: Reader) -> str:
    """Returns the text of all tokens."""
    texts = []
    while isinstance(event := await anext(reader), Token | GroundedSources):
        texts.append(event.text if isinstance(event, Token) else "")
    return "".join(texts)


async def test_each_reader_reads_everything_at_its_own_pace() -> None:
    buffer = AnswerBuffer()
    early = Reader(buffer)
    buffer.append("one ")
    assert (await anext(early)) == Token("one ")
    buffer.append("two")
    late = Reader(buffer)
    buffer.finish(completed("one two"))
    assert await all_of(early) == "two"
    assert await all_of(late) == "one two"
    assert await anext(late) == completed("one two")


async def test_a_cancelled_wait_loses_nothing() -> None:
    buffer = AnswerBuffer()
    reader = Reader(buffer)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(reader)
    buffer.append("a")
    assert await anext(reader) == Token("a")


async def test_a_buffered_reader_wakes_only_at_the_end() -> None:
    buffer = AnswerBuffer()
    waiting = asyncio.create_task(anext(Reader(buffer, buffered=True)))
    buffer.append("a")
    await asyncio.sleep(0)
    assert not waiting.done()
    buffer.finish(completed("a"))
    assert await waiting == completed("a")


async def test_a_retry_with_the_same_text_continues_the_answer() -> None:
    buffer = AnswerBuffer()
    reader = Reader(buffer)
    buffer.append("The capital ")
    assert await anext(reader) == Token("The capital ")
    buffer.begin_again()
    buffer.append("The ")
    waiting = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)
    assert not waiting.done()
    buffer.begin_again()
    buffer.append("The cap")
    buffer.append("ital is Paris")
    assert await waiting == Token("is Paris")
    buffer.finish(completed("The capital is Paris."))
    assert await all_of(reader) == "."


@pytest.mark.parametrize("text", ["It is Paris.", "The"])
async def test_a_retry_with_another_text_fails_readers_that_have_started(text: str) -> None:
    buffer = AnswerBuffer()
    reader, whole, late = Reader(buffer), Reader(buffer, buffered=True), Reader(buffer)
    buffer.append("The capital ")
    await anext(reader)
    buffer.begin_again()
    buffer.finish(completed(text))
    with pytest.raises(UpstreamError, match="other words"):
        await anext(reader)
    assert await anext(whole) == completed(text)
    assert await all_of(late) == text


async def test_the_end_brings_missed_tokens() -> None:
    buffer = AnswerBuffer()
    reader = Reader(buffer)
    buffer.append("one ")
    buffer.finish(completed("one two"))
    assert await all_of(reader) == "one two"


async def test_every_reader_gets_the_error() -> None:
    buffer = AnswerBuffer()
    readers = [Reader(buffer), Reader(buffer, buffered=True)]
    buffer.finish(BreakerOpen("ollama", 5))
    buffer.finish(completed("too late"))
    for reader in readers:
        with pytest.raises(BreakerOpen):
            await anext(reader)


async def test_a_cached_answer_fails_readers_of_another_answer() -> None:
    buffer = AnswerBuffer()
    reader, fresh = Reader(buffer), Reader(buffer)
    buffer.append("The ")
    await anext(reader)
    buffer.begin_again()
    buffer.finish(StoredElsewhere())
    with pytest.raises(UpstreamError):
        await anext(reader)
    assert await anext(fresh) == StoredElsewhere()


async def test_the_buffer_accepts_tokens_while_one_reader_keeps_up() -> None:
    buffer = AnswerBuffer()
    slow, fast = Reader(buffer), Reader(buffer)
    for _ in range(AHEAD + 1):
        buffer.append("x")
    waiting = asyncio.create_task(buffer.wait_for_readers())
    await asyncio.sleep(0)
    assert not waiting.done()
    await anext(fast)
    await asyncio.wait_for(waiting, 1)
    fast.close()
    waiting = asyncio.create_task(buffer.wait_for_readers())
    await asyncio.sleep(0)
    assert not waiting.done()
    slow.close()
    await asyncio.wait_for(waiting, 1)


async def test_a_buffered_reader_causes_no_backpressure() -> None:
    buffer = AnswerBuffer()
    Reader(buffer, buffered=True)
    for _ in range(AHEAD * 2):
        buffer.append("x")
    await asyncio.wait_for(buffer.wait_for_readers(), 1)


async def test_a_tail_yields_new_tokens_with_their_position() -> None:
    buffer = AnswerBuffer()
    tail = Tail(buffer)
    buffer.append("ab")
    buffer.append("c")
    assert tail.take() == (0, 0, "abc")
    assert tail.take() == (0, 3, "")
    buffer.append("d")
    assert tail.take() == (0, 3, "d")
    buffer.begin_again()
    buffer.append("e")
    assert tail.take() == (1, 0, "e")


async def test_a_caller_who_comes_after_the_wait_is_told_no_position() -> None:
    leader, follower = AnswerBuffer(), AnswerBuffer()
    reader, tail = Reader(leader), Tail(leader)
    assert tail.take_place() is None
    leader.place.move(2, 4.5)
    said = [tail.take_place(), tail.take_place()]
    assert said == [await anext(reader), None] == [Queued(2, 4.5), None]
    leader.place.move(0, None)
    said.append(tail.take_place())
    for one in filter(None, said):
        follower.place.move(one.position, one.seconds)
    late = [asyncio.ensure_future(anext(Reader(buffer))) for buffer in (leader, follower)]
    await asyncio.sleep(0)
    for buffer in (leader, follower):
        buffer.append("one")
    assert [await one for one in (anext(reader), *late)] == [Token("one")] * 3
    assert (leader.place.position, follower.place.position) == (None, None)


SOURCES = (Source("d1", "Title", 0, "text", 0.5),)


async def test_sources_come_before_the_first_token() -> None:
    buffer = AnswerBuffer()
    early = Reader(buffer)
    buffer.ground_in(SOURCES)
    assert await anext(early) == GroundedSources(SOURCES)
    buffer.append("one")
    assert await anext(early) == Token("one")
    late = Reader(buffer)
    assert [await anext(late), await anext(late)] == [GroundedSources(SOURCES), Token("one")]


async def test_a_retry_with_other_sources_continues_only_for_readers_without_a_token() -> None:
    buffer = AnswerBuffer()
    reading, waiting = Reader(buffer), Reader(buffer)
    buffer.ground_in(SOURCES)
    buffer.append("one")
    assert [await anext(reading), await anext(reading)] == [GroundedSources(SOURCES), Token("one")]
    assert await anext(waiting) == GroundedSources(SOURCES)
    buffer.begin_again()
    buffer.ground_in(())
    buffer.append("one two")
    with pytest.raises(UpstreamError, match="other words"):
        await anext(reading)
    assert [await anext(waiting), await anext(waiting)] == [GroundedSources(()), Token("one two")]


async def test_a_retry_with_the_same_sources_continues() -> None:
    buffer = AnswerBuffer()
    reader = Reader(buffer)
    buffer.ground_in(SOURCES)
    buffer.append("one")
    assert [await anext(reader), await anext(reader)] == [GroundedSources(SOURCES), Token("one")]
    buffer.begin_again()
    buffer.ground_in(SOURCES)
    buffer.append("one two")
    assert await anext(reader) == Token(" two")
