"""One admitted call: reports once how it went, and keeps a probe's permit alive meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from api.breaker.state import Outcome, Policy


class _Owner(Protocol):
    policy: Policy

    async def report(self, epoch: int, token: str, outcome: Outcome) -> None: ...

    async def renew(self, token: str) -> bool: ...


class CallAttempt:
    """A call admitted in `epoch`; `token` names its permit when it is a probe, and is empty otherwise."""

    def __init__(self, owner: _Owner, epoch: int, token: str) -> None:
        self._owner = owner
        self._epoch = epoch
        self._token = token
        self.reported = False

    async def succeeded(self, seconds: float) -> None:
        """The call worked. `seconds`: to its first token, less the time the model took to load."""
        await self._report(Outcome.SLOW if self._is_slow(seconds) else Outcome.OK)

    async def failed(self, seconds: float) -> None:
        """The call failed in a way that speaks against Ollama."""
        await self._report(Outcome.SLOW_FAILED if self._is_slow(seconds) else Outcome.FAILED)

    async def ignored(self) -> None:
        """The call says nothing about Ollama: a permit goes back, nothing else changes."""
        await self._report(Outcome.IGNORED)

    def _is_slow(self, seconds: float) -> bool:
        return seconds * 1000 >= self._owner.policy.slow_ms

    async def _report(self, outcome: Outcome) -> None:
        if not self.reported:
            self.reported = True
            await self._owner.report(self._epoch, self._token, outcome)

    @asynccontextmanager
    async def renewed(self) -> AsyncIterator[None]:
        """Renews the permit of a probe while the block runs. Any other call has none."""
        if not self._token:
            yield
            return
        renewal = asyncio.create_task(self._keep_renewing())
        try:
            yield
        finally:
            renewal.cancel()

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(self._owner.policy.lease_ms / 3000)
            if not await self._owner.renew(self._token):
                return
