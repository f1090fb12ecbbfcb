"""Warm-ups of the cache in Redis: the remaining questions, the progress, and the worker that has the job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, cast

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from api.errors import Undecryptable
from api.ports.answer_cache import WarmUpCount, WarmUpProgress, WarmUpStatus
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import now_ms, script

LIFETIME_MS: Final = 3600 * 1000
PUSHED: Final = 500
"""Questions per write."""
ERRORS_KEPT: Final = 10


class RedisWarmUpJobs:
    """The warm-up jobs of the whole fleet. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: HealthGatedClients, keys: Keys, worker: str) -> None:
        self._redis = redis.of(keys.cache_warm_ups)
        self._texts = redis.texts
        self._stored: dict[bytes, bytes] = {}
        """The encrypted questions that were last read, as in the queue."""
        self._keys = keys
        self._worker = worker
        self._acquire = script(redis.client, "stores/cache/warm_up_jobs", "acquire")
        self._settle = script(redis.client, "stores/cache/warm_up_jobs", "settle")
        self._cancel = script(redis.client, "stores/cache/warm_up_jobs", "cancel")

    async def create(self, job: str, questions: Sequence[bytes]) -> None:
        """Creates a job that no worker has yet.

        If this fails midway, what was written belongs to no job and expires.
        """
        _, queue, _ = self._keys.cache_warm_up(job)
        for start in range(0, len(questions), PUSHED):
            part = [self._texts.encrypt(queue, "question", one) for one in questions[start : start + PUSHED]]
            await self._redis.run("warm_up", lambda client, part=part: _push(client, queue, part))  # type: ignore[misc]
        await self._redis.run("warm_up", lambda client: self._begin(client, job, len(questions)))

    async def _begin(self, client: Redis, job: str, total: int) -> None:
        progress, _, jobs = self._keys.cache_warm_up(job)
        started = await now_ms(client)
        facts: dict[Any, Any] = {"status": "running", "total": total, "done": 0, "started_ms": started}
        async with client.pipeline(transaction=True) as pipe:
            pipe.hset(progress, mapping={**facts, "by": self._worker})
            pipe.pexpire(progress, LIFETIME_MS)
            pipe.zadd(jobs, {job: started})
            pipe.pexpire(jobs, LIFETIME_MS)
            await pipe.execute()

    async def progress(self, job: str) -> WarmUpProgress | None:
        """Returns the progress of a job; None if it does not exist or has expired."""
        key = self._keys.cache_warm_up(job)[0]
        fields: Mapping[Any, Any] = await self._redis.run("warm_up", lambda client: client.hgetall(key))
        texts = {name.decode(): self._shown(key, value) for name, value in fields.items()}
        return _progress(job, texts) if fields else None

    async def cancel(self, job: str) -> None:
        """Cancels a running job."""
        await self._run(self._cancel, job, job)

    async def unfinished(self) -> list[str]:
        """Returns the running jobs, oldest first."""
        key = self._keys.cache_warm_ups
        jobs: list[Any] = await self._redis.run("warm_up", lambda client: client.zrange(key, 0, -1))
        return [job.decode() for job in jobs]

    async def acquire(self, job: str, seconds: float) -> bool:
        """Takes or renews a running job for `seconds`; 0 releases it.

        Returns whether the job is running and this worker has it.
        """
        return bool(await self._run(self._acquire, job, self._worker, round(seconds * 1000), LIFETIME_MS, job))

    async def left(self, job: str, count: int) -> list[bytes]:
        """Returns the first `count` remaining questions."""
        queue = self._keys.cache_warm_up(job)[1]
        found: Any = await self._redis.run("warm_up", lambda client: client.lrange(queue, 0, count - 1))
        return [self._decrypted(queue, one) for one in found] if self._texts.keys else list(found)

    async def settle(self, job: str, question: bytes, counts: Sequence[WarmUpCount], error: str = "") -> bool:
        """Counts a question as done, once. Without a question, ends the job if none is left.

        Returns whether the job is still running.
        """
        key, stored = self._keys.cache_warm_up(job)[0], self._stored.get(question, question)
        what = self._texts.encrypt(key, "error", error) if error else ""
        is_running = await self._run(self._settle, job, job, LIFETIME_MS, ERRORS_KEPT, stored, what, *counts)
        self._stored.pop(question, None)
        return bool(is_running)

    def _decrypted(self, queue: str, stored: bytes) -> bytes:
        """A question that cannot be decrypted stays as it is, and then counts as one that cannot be read."""
        with suppress(Undecryptable):
            question = self._texts.decrypt(queue, "question", stored)
            if question != stored:
                self._stored[question] = stored
            return question
        return stored

    def _shown(self, key: str, value: bytes) -> str:
        """A value of the progress as text; an error may be encrypted."""
        with suppress(Undecryptable):
            return self._texts.decrypt(key, "error", value).decode("utf-8", "replace")
        return "the error cannot be decrypted"

    async def _run(self, called: AsyncScript, job: str, *arguments: str | bytes | int) -> Any:
        keys = self._keys.cache_warm_up(job)
        return await self._redis.run("warm_up", lambda client: called(keys, arguments, client))


async def _push(client: Redis, queue: str, questions: Sequence[str | bytes]) -> None:
    async with client.pipeline(transaction=True) as pipe:
        pipe.rpush(queue, *questions)
        pipe.pexpire(queue, LIFETIME_MS)
        await pipe.execute()


def _progress(job: str, fields: Mapping[str, str]) -> WarmUpProgress:
    def count(name: str) -> int:
        return int(fields.get(name, 0))

    errors = sorted(name for name in fields if name.startswith("error:"))
    return WarmUpProgress(
        job=job,
        status=cast(WarmUpStatus, fields["status"]),
        total=count("total"),
        done=count("done"),
        generated=count("generated"),
        stored=count("stored"),
        skipped=count("skipped"),
        failed=count("failed"),
        errors=tuple(fields[name] for name in errors),
        started_ms=count("started_ms"),
        ended_ms=count("ended_ms") or None,
        by=fields.get("by", ""),
    )
