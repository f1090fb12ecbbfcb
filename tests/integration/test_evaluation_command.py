"""`ragherd eval` against the real service: measures, thresholds, drafts, and cases from votes."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from ragherd.commands import commands
from tests.integration.test_documents import CANTEEN, HOLIDAY, ONNX, add
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask

CASES = (
    {"question": "Who approves my holiday?", "documents": ["hr/holiday.md"], "answer": "The team lead approves it."},
    {"question": "On which floor is the canteen?", "documents": ["canteen.md"], "passages": ["on the third  floor"]},
    {"question": "What is the boiling point of tungsten?", "answerable": False},
)


def invoked(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(commands, ["eval", *arguments], env={"COLUMNS": "200", **environment})


async def run(client: httpx.AsyncClient, *arguments: object, **environment: str) -> Result:
    """Runs the command in a thread, because the service runs in the test's event loop."""
    given = [*map(str, arguments), "--url", str(client.base_url)]
    return await asyncio.to_thread(partial(invoked, *given, **environment))


async def stored(serve: Service) -> httpx.AsyncClient:
    client = await serve(embedder=ONNX, server={"log_level": "error"})
    await add(client, "Holiday policy", HOLIDAY, source="intranet/hr/holiday.md", tags=["hr"])
    await add(client, "Canteen", CANTEEN, source="canteen.md")
    return client


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cases.jsonl"
    path.write_text("\n".join(json.dumps(case) for case in CASES))
    return path


def value(found: dict[str, Any], name: str) -> tuple[float, int] | None:
    one = found["metrics"][name]
    return None if one is None else (one["value"], one["n"])


async def test_an_evaluation_measures_what_the_service_finds_cites_and_says(
    serve: Service, stub: StubOllama, file: Path, tmp_path: Path
) -> None:
    client = await stored(serve)
    stub.behaviour(answer="Holiday is approved by the team lead [1]. Ask three weeks before [1].", path="/api/chat")
    await ask(client, "Who approves my holiday?")  # cached, but not used
    before = (await client.get("/api/semantic-cache/metrics")).json()["cache_size"]

    result = await run(client, file, "--json", "--out", tmp_path / "report")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (value(found, "recall"), value(found, "mrr"), value(found, "ndcg")) == ((1, 2), (1, 2), (1, 2))
    assert value(found, "answers") == (1, 1)
    assert (value(found, "answered"), value(found, "refused")) == ((1, 2), (1, 1))
    assert value(found, "citation_precision") == value(found, "citation_recall") == (1, 2)
    assert value(found, "grounded") == (0.25, 2)  # on the canteen neither is true
    assert (found["missing_documents"], found["errors"], found["ok"]) == ([], 0, True)

    page = (tmp_path / "report" / "eval.html").read_text()
    assert page.index("Failures") < page.index("Measures")
    assert "Ask three weeks before [1]. (not there: 3 week)" in page
    assert (await client.get("/api/semantic-cache/metrics")).json()["cache_size"] == before
    assert stub.stats["requests"]["/api/chat"] == 3

    better = await run(client, file, "--json", "--min", "recall=0.9", "--min", "grounded=0.9")
    assert better.exit_code == 1
    assert [one["met"] for one in json.loads(better.stdout)["thresholds"]] == [True, False]
    shown = await run(client, file, "--min", "mrr=0.5", "--baseline", tmp_path / "report" / "eval.json")
    assert shown.exit_code == 0, shown.output
    assert "+0.000" in shown.stdout
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"cases": [{"question": "Who?", "measures": {"recall": 1}}]}))
    refused = await run(client, file, "--baseline", other)
    assert refused.exit_code == 2, "a baseline that compares nothing would always pass"
    assert "has none of the questions" in refused.stderr


async def test_retrieval_is_measured_without_the_model(serve: Service, stub: StubOllama, file: Path) -> None:
    client = await stored(serve)
    result = await run(client, file, "--retrieval", "--top-k", 1, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (value(found, "recall"), value(found, "ndcg"), value(found, "answered")) == ((1, 2), (1, 2), None)
    assert "/api/chat" not in stub.stats["requests"]


async def test_a_document_that_is_not_stored_and_a_failed_reply_are_reported(
    serve: Service, stub: StubOllama, tmp_path: Path
) -> None:
    client = await stored(serve)
    file = tmp_path / "cases.jsonl"
    file.write_text(json.dumps({"question": "Who approves my holiday?", "documents": ["gone.md"]}))
    stub.behaviour("status", status=400, path="/api/chat")
    result = await run(client, file)
    assert result.exit_code == 1
    assert "no document is 'gone.md'" in result.stdout
    assert "no answer: /query: 502" in result.stdout


async def test_a_judge_decides_what_the_rules_leave_open(serve: Service, stub: StubOllama, tmp_path: Path) -> None:
    client = await stored(serve)
    file = tmp_path / "cases.jsonl"
    file.write_text(json.dumps({"question": "Who approves my holiday?"}))
    stub.behaviour(answer="Yes, your boss has to agree to any time off work [1].", path="/api/chat")
    alone = json.loads((await run(client, file, "--json")).stdout)
    judged = json.loads((await run(client, file, "--json", "--judge", "llama3.2")).stdout)
    assert (value(alone, "grounded"), value(judged, "grounded")) == ((0, 1), (1, 1))


async def test_drafts_are_made_from_stored_passages_and_ignored_until_confirmed(
    serve: Service, stub: StubOllama, tmp_path: Path
) -> None:
    client = await stored(serve)
    stub.behaviour(answer="Question: Who approves my holiday?", path="/api/chat")
    made = await run(client, "make", "--count", 1, "--tag", "hr")
    assert made.exit_code == 0, made.output
    (draft,) = map(json.loads, made.stdout.splitlines())
    assert draft == {
        "question": "Who approves my holiday?",
        "documents": ["intranet/hr/holiday.md"],
        "passages": ["Holiday is approved by the team lead."],
        "confirmed": False,
        "title": "Holiday policy",
        "chunk": 0,
    }
    file = tmp_path / "drafts.jsonl"
    file.write_text(made.stdout)
    assert (await run(client, file)).exit_code == 2
    assert json.loads((await run(client, file, "--unconfirmed", "--json")).stdout)["metrics"]["recall"]["value"] == 1


async def test_a_bad_vote_becomes_a_case(serve: Service, stub: StubOllama, redis_url: str) -> None:
    client = await stored(serve)
    stub.behaviour(answer="The cook approves it [1].", path="/api/chat")
    answered = await ask(client, "Who approves my holiday?")
    hit = await ask(client, "Who approves my holiday?")
    assert hit["cache"]["kind"] == "exact"
    empty = await run(client, "cases", REDIS_URL=redis_url)
    assert (empty.exit_code, empty.stdout) == (0, "")
    body = {"request_id": hit["request_id"], "verdict": "bad", "comment": "The lead does."}
    assert (await client.post("/feedback", json=body)).status_code == 202
    (case,) = map(json.loads, (await run(client, "cases", REDIS_URL=redis_url)).stdout.splitlines())
    assert (case["question"], case["bad_answer"], case["comment"], case["confirmed"], case["asked"]) == (
        "Who approves my holiday?",
        answered["answer"],
        "The lead does.",
        False,
        "the same",
    )
    assert "Holiday policy" in case["answered_from"]


def test_two_saved_runs_are_compared(tmp_path: Path) -> None:
    for name, values in (("first", [1.0] * 8), ("second", [0.0] * 7 + [1.0])):
        cases = [{"question": f"{at}", "measures": {"recall": one}} for at, one in enumerate(values)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"cases": cases}))
    files = [str(tmp_path / f"{name}.json") for name in ("first", "second")]
    worse = invoked("compare", *files, "--json")
    assert worse.exit_code == 1
    assert json.loads(worse.stdout)["measures"]["recall"]["value"] == -0.875
    assert invoked("compare", *reversed(files)).exit_code == 0


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"cases": [{"question": "a", "measures": {"mrr": 1%s}}]}' % ("0" * 400)]
)
def test_a_file_that_is_no_saved_run_is_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "eval.json"
    file.write_text(text)
    result = invoked("compare", str(file), str(file))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("gone.csv",), "gone.csv: No such file"),
        (("--min", "recall=2"), "--min recall=2: must be"),
        (("--min", "grace=0.5"), "--min grace=0.5: must be"),
        (("--baseline", "gone.json"), "gone.json: No such file"),
        (("compare", "one.json"), "give one FILE"),
        (("a.csv", "--demo"), "give one FILE"),
    ],
)
def test_a_wrong_use_is_one_line(arguments: tuple[str, ...], reason: str) -> None:
    result = invoked(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1
