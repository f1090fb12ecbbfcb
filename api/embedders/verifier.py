"""The verifier in the worker's process (SEMANTIC_CACHE_VERIFIER_PATH): a cross-encoder that reads two questions.

It runs in a thread. The fleet may put another model in use: the worker loads it and scores with the former one until
it is loaded.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from api.cancellation import Background
from api.embedders.minilm import ModelFiles, files_at
from api.embedders.reranker import CrossEncoder, ScoringQueue, TextPair
from api.errors import SettingsError, StoreUnavailable, VerifierUnavailable
from api.ports.answer_quality import Verifier, VerifierFiles, VerifierModels
from api.ports.telemetry import Telemetry

SETTING: Final = "SEMANTIC_CACHE_VERIFIER_PATH"
BUILTIN: Final = "builtin"
"""The value of the setting for the shipped model."""
SHIPPED: Final = Path(__file__).with_name("weights") / "verifier"
PRIOR: Final = "prior.json"
"""Next to the model: what the policy `verified` knows before it has labels."""
BATCH: Final = 5
"""Pairs that run together."""
POLL_SECONDS: Final = 1.0
RENEW_SECONDS: Final = 3600.0
RETRY_SECONDS: Final = 60.0
"""Seconds after which a worker tries again to load a model that it could not load."""


def verifier_files(path: str) -> ModelFiles:
    """Returns the files of SEMANTIC_CACHE_VERIFIER_PATH. Raises `SettingsError`. Loads nothing."""
    return files_at(str(SHIPPED) if path == BUILTIN else path, SETTING)


def prior_of(path: str) -> bytes | None:
    """Returns the prior in the verifier's folder (SEMANTIC_CACHE_VERIFIER_PATH), or None."""
    file = verifier_files(path).weights.with_name(PRIOR)
    return file.read_bytes() if file.is_file() else None


def read_folder(folder: Path) -> VerifierFiles:
    """Reads a trained model for the fleet. Raises `SettingsError` if it is incomplete or does not load."""
    files, info = files_at(str(folder), str(folder)), folder / "model.json"
    if not info.is_file():
        raise SettingsError(f"{folder}: file not found: {info}")
    CrossEncoder(files, str(folder))
    found = VerifierFiles(files.weights.read_bytes(), files.tokenizer.read_bytes(), info.read_bytes())
    try:
        stated = json.loads(found.info).get("version")
    except (ValueError, AttributeError) as error:
        raise SettingsError(f"{folder}: cannot read {info}: {error}") from error
    if stated not in (None, found.digest):
        raise SettingsError(f"{folder}: its files do not match the version in {info}")
    return found


@dataclass(frozen=True, slots=True)
class _Loaded:
    digest: str
    model: CrossEncoder


class OnnxVerifier:
    """A verifier that follows the fleet. Use `OnnxVerifier.open`."""

    def __init__(
        self,
        path: str,
        loaded: _Loaded,
        thread: ThreadPoolExecutor,
        timeout: float,
        models: VerifierModels,
        telemetry: Telemetry,
    ) -> None:
        self._path = path
        self._loaded = loaded
        self._timeout = timeout
        self._models = models
        self._telemetry = telemetry
        self._queue = ScoringQueue(self._score, thread, "verifier", VerifierUnavailable, BATCH)
        self._own = loaded.digest
        """The digest of SEMANTIC_CACHE_VERIFIER_PATH."""
        self._refused, self._refused_until = "", 0.0

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: str,
        timeout: float,  # noqa: ASYNC109 - of `score`
        models: VerifierModels,
        telemetry: Telemetry,
    ) -> AsyncIterator[OnnxVerifier]:
        """Loads the model in its thread and closes it on exit.

        `timeout`: seconds for one call of `score`, including its wait. Raises `SettingsError` if the model cannot be
        loaded or is not a cross-encoder.
        """
        files = verifier_files(path)
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verifier")
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(thread, _load, files)
            verifier = cls(path, loaded, thread, timeout, models, telemetry)
            await verifier.follow()
            try:
                async with Background() as background:
                    background.start(verifier.keep_following)
                    yield verifier
            finally:
                await verifier._queue.close()
        finally:
            await asyncio.to_thread(thread.shutdown)

    @property
    def digest(self) -> str:
        """Identifies the model in use."""
        return self._loaded.digest

    async def score(self, question: str, candidates: Sequence[str]) -> list[float]:
        """Returns one logit for each candidate. Raises `VerifierUnavailable` on a fault or at its deadline."""
        return await self._scores(question, candidates, background=False)

    @property
    def in_background(self) -> Verifier:
        """The same verifier for work that users do not wait for. Their scores come first."""
        return _InBackground(self)

    async def _scores(self, question: str, candidates: Sequence[str], *, background: bool) -> list[float]:
        pairs = [TextPair(question, one) for one in candidates]
        began = time.perf_counter()
        try:
            found = await self._queue.scores(pairs, self._timeout, background=background)
        except VerifierUnavailable as error:
            self._telemetry.verifying_failed(error, time.perf_counter() - began)
            raise
        self._telemetry.verified(time.perf_counter() - began)
        return found

    def _score(self, pairs: Sequence[TextPair]) -> list[float]:
        return self._loaded.model.logits(pairs)

    async def keep_following(self) -> None:
        """Loads the model that the fleet puts in use, and keeps its files in Redis."""
        renewed = 0.0
        while True:
            await self.follow()
            if time.monotonic() - renewed > RENEW_SECONDS:
                renewed = time.monotonic() if await self._renewed() else 0.0
            await asyncio.sleep(POLL_SECONDS)

    async def follow(self) -> None:
        """Loads the fleet's model if it is another one. On a fault this worker keeps its own."""
        try:
            wanted = await self._models.active() or self._own
            if wanted == self.digest or (wanted == self._refused and time.monotonic() < self._refused_until):
                return
            files = None if wanted == self._own else await self._models.read(wanted)
        except StoreUnavailable:
            return  # the next attempt is a second away
        try:
            self._loaded = await asyncio.to_thread(self._load_again, wanted, files)
        except (SettingsError, OSError) as error:
            self._refused, self._refused_until = wanted, time.monotonic() + RETRY_SECONDS
            self._telemetry.verifier_not_changed(wanted, str(error))
        else:
            self._telemetry.verifier_changed(wanted)

    def _load_again(self, wanted: str, files: VerifierFiles | None) -> _Loaded:
        if wanted == self._own:
            return _load(verifier_files(self._path))
        if files is None:
            raise SettingsError("its files are not in Redis; activate it again")
        with tempfile.TemporaryDirectory(prefix="ragherd-verifier-") as folder:
            given = ModelFiles(Path(folder, "model.onnx"), Path(folder, "tokenizer.json"))
            given.weights.write_bytes(files.weights)
            given.tokenizer.write_bytes(files.tokenizer)
            return _load(given)

    async def _renewed(self) -> bool:
        try:
            await self._models.renew()
        except StoreUnavailable:
            return False
        return True


class _InBackground:
    """Scores after users' questions."""

    def __init__(self, verifier: OnnxVerifier) -> None:
        self._verifier = verifier

    @property
    def digest(self) -> str:
        return self._verifier.digest

    async def score(self, question: str, candidates: Sequence[str]) -> list[float]:
        return await self._verifier._scores(question, candidates, background=True)


def _load(files: ModelFiles) -> _Loaded:
    model = CrossEncoder(files, SETTING)
    return _Loaded(model.digest, model)
