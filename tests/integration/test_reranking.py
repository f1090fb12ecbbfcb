"""Re-ranked passages in answers and in the cache, and failures of the re-ranker."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.embedders.reranker import CrossEncoder, TextPair
from api.errors import SettingsError
from tests.integration.test_documents import CANTEEN, ONNX, add
from tests.integration.test_provenance import cached
from tests.support.service import Service, ask, make_settings
from tests.support.small_cross_encoder import write_cross_encoder

QUESTION = "Who approves my holiday?"
NEAREST = "Who approves my holiday? Holiday is approved by the team lead, as everybody dislikes."
LIKED = "Some holiday in the office is approved by whom the boss likes."
NEUTRAL = "Approval of holiday takes a week."


@pytest.fixture
def model(tmp_path: Path) -> dict[str, Any]:
    """Settings for a re-ranker that prefers some texts and rejects others."""
    return {"rerank_model_path": write_cross_encoder(tmp_path / "model"), "rerank_timeout": 30.0}


@pytest.fixture
def never_in_time(model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Settings for a re-ranker that scores nothing until the test has ended."""
    ended, score = threading.Event(), CrossEncoder.score

    def late(self: CrossEncoder, pairs: Sequence[TextPair]) -> list[float]:
        ended.wait(60)
        return score(self, pairs)

    monkeypatch.setattr(CrossEncoder, "score", late)
    yield model | {"rerank_timeout": 0.05}
    ended.set()


async def titles(client: httpx.AsyncClient, **more: Any) -> list[str]:
    return [source["title"] for source in (await ask(client, QUESTION, **more))["sources"]]


async def counted(client: httpx.AsyncClient, outcome: str) -> float:
    """Returns how often the re-ranker scored a question's passages."""
    lines = (await client.get("/metrics")).text.splitlines()
    found = [one for one in lines if one.startswith("ragherd_reranking_duration_seconds_count") and outcome in one]
    return float(found[0].split()[-1])


async def test_sources_come_in_the_order_of_the_re_ranker(serve: Service, model: dict[str, Any]) -> None:
    plain, reranking = await serve(embedder=ONNX), await serve(embedder=ONNX, retrieval=model)
    for title, text in (("Nearest", NEAREST), ("Neutral", NEUTRAL), ("Liked", LIKED)):
        await add(plain, title, text)
    assert (await titles(plain))[0] == "Nearest"
    answered = await ask(reranking, QUESTION)
    assert answered["cache"]["status"] == "miss"  # another order gives another answer: nothing is shared
    assert [source["title"] for source in answered["sources"]] == ["Liked", "Neutral", "Nearest"]
    verdicts = [1 / (1 + math.exp(-logit)) for logit in (2, 0, -2)]
    assert [source["score"] for source in answered["sources"]] == pytest.approx(verdicts, abs=1e-6)
    assert (await counted(reranking, "reranked"), await counted(reranking, "failed")) == (1, 0)
    assert (await ask(reranking, QUESTION))["cache"]["status"] == "hit"
    assert (await ask(plain, QUESTION))["cache"]["status"] == "hit"
    assert await titles(reranking, top_k=1) == ["Liked"]


async def test_a_re_ranker_reads_title_and_text_and_never_what_is_irrelevant(
    serve: Service, model: dict[str, Any]
) -> None:
    client = await serve(embedder=ONNX, retrieval=model)
    await add(client, "Holiday", NEUTRAL)
    await add(client, "Holiday likes", "Who approves a holiday answers within a week.")
    await add(client, "Tungsten", "Likes likes likes likes: it boils at 5,930 degrees.")
    assert await titles(client) == ["Holiday likes", "Holiday"]


async def test_what_it_does_not_read_is_no_source(serve: Service, model: dict[str, Any]) -> None:
    client = await serve(embedder=ONNX, retrieval={**model, "rerank_candidates": 1})
    await add(client, "Nearest", NEAREST)
    await add(client, "Liked", LIKED)
    assert await titles(client, top_k=1) == ["Nearest"]
    assert await titles(client, top_k=2) == ["Liked", "Nearest"]  # as many are read as are wanted


@pytest.mark.parametrize("fault", ["never_in_time", "model"])
async def test_where_it_can_not_judge_the_answer_comes_all_the_same(
    serve: Service, request: pytest.FixtureRequest, fault: str
) -> None:
    client = await serve(embedder=ONNX, retrieval=request.getfixturevalue(fault))
    await add(client, "Nearest", NEAREST + (" It breaks." if fault == "model" else ""))
    await add(client, "Liked", LIKED)
    answered = await ask(client, QUESTION)
    assert [source["title"] for source in answered["sources"]] == ["Nearest", "Liked"]
    assert 0.25 <= answered["sources"][1]["score"] < answered["sources"][0]["score"] < 1
    assert (await counted(client, "reranked"), await counted(client, "failed")) == (0, 1)
    assert (await ask(client, QUESTION))["cache"]["status"] == "hit"


async def test_a_new_document_makes_stale_what_it_would_change_and_nothing_else(
    serve: Service, model: dict[str, Any]
) -> None:
    client = await serve(embedder=ONNX, retrieval=model)
    await add(client, "Liked", LIKED)
    await titles(client, top_k=1)
    await add(client, "Nearest", NEAREST)
    assert await cached(client, QUESTION, top_k=1)  # nearer, but the re-ranker keeps it below
    await add(client, "Canteen", CANTEEN)
    assert await cached(client, QUESTION, top_k=1)
    await add(client, "Liked more", LIKED + " It likes to.")
    assert not await cached(client, QUESTION, top_k=1)
    assert await titles(client, top_k=1) == ["Liked more"]
    assert await counted(client, "reranked") == 2  # the two questions, not what was read for documents


async def test_a_new_document_that_takes_another_s_place_before_the_re_ranker_makes_stale(
    serve: Service, model: dict[str, Any]
) -> None:
    client = await serve(embedder=ONNX, retrieval={**model, "rerank_candidates": 2})
    await add(client, "Neutral", NEUTRAL)
    await add(client, "Liked", LIKED)
    assert await titles(client, top_k=1) == ["Liked"]
    await add(client, "Nearest", NEAREST)
    assert not await cached(client, QUESTION, top_k=1)
    assert await titles(client, top_k=1) == ["Neutral"]  # the liked one is third by retrieval now, and is not read


async def test_where_it_can_not_judge_a_new_document_a_cached_answer_is_stale(
    serve: Service, never_in_time: dict[str, Any]
) -> None:
    client = await serve(embedder=ONNX, retrieval=never_in_time)
    await add(client, "Nearest", NEAREST)
    await titles(client, top_k=1)
    await add(client, "Canteen", CANTEEN)
    assert await cached(client, QUESTION, top_k=1)  # it stands no chance: nobody has to judge it
    await add(client, "Liked", LIKED)
    assert not await cached(client, QUESTION, top_k=1)


async def test_a_model_that_is_no_cross_encoder_stops_the_start(
    tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_cross_encoder(tmp_path, "three")
    app = create_app(make_settings(redis_url, "http://127.0.0.1:9", retrieval={"rerank_model_path": path}))
    with pytest.raises(SettingsError, match="RERANK_MODEL_PATH"):
        async with app.router.lifespan_context(app):
            pass
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "settings_wrong" in line]
    assert "RERANK_MODEL_PATH: " in line
