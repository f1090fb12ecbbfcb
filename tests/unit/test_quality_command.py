"""`ragherd quality`: its files, figures, reports and exit codes."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from api.ports.question import UNLIMITED
from api.quality.replay import Near, Offer
from api.quality.replayed_policies import Guarded
from api.query.candidates import best, consider, up_to_the_first_fresh
from api.settings import load_settings
from api.values import CachedAnswer, CacheMatch, Usage
from ragherd.commands import commands
from ragherd.quality_replay import Questions, open_product
from ragherd.quality_samples import MOST_QUESTIONS, Unreadable, read_samples

PAIRS = """\
a,b,same,kind
What is Python?,What is Python,1,repeat
How do I enable two-factor authentication?,How do I disable two-factor authentication?,0,opposite
How far is 5 miles in kilometers?,How far is 50 miles in kilometers?,0,number
What is the capital of France?,How do I bake bread?,0,unrelated
"""
INTENTS = """\
question,intent
How do I reset my password?,password
how do I reset my password,password
How can I reset my password?,password
What is the boiling point of water?,boiling
"""


def run(*arguments: str, key: str = "") -> Result:
    return CliRunner().invoke(commands, ["quality", *arguments], env={"RAGHERD_API_KEY": key, "COLUMNS": "200"})


def document(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    [line] = result.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def row(found: dict[str, Any], policy: str, threshold: float) -> dict[str, Any]:
    [only] = [one for one in found["rows"] if (one["policy"], one["threshold"]) == (policy, threshold)]
    return dict(only)


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    path = tmp_path / "pairs.csv"
    path.write_text(PAIRS)
    return str(path)


@pytest.fixture
def intents(tmp_path: Path) -> str:
    path = tmp_path / "intents.csv"
    path.write_text(INTENTS)
    return str(path)


# -- Figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pairs_are_judged_one_by_one_with_and_without_guards(pairs: str) -> None:
    found = document("measure", pairs)
    assert (found["kind"], found["questions"]) == ("pairs", 4)
    bare, guarded = row(found, "fixed", 0.8), row(found, "guarded", 0.8)
    assert (bare["hits"], bare["wrong"]) == (3, 2)
    assert (guarded["hits"], guarded["wrong"]) == (1, 0)
    assert guarded["recall"]["value"] == 1.0
    assert guarded["kinds"] == {"repeat": [1, 1], "opposite": [0, 1], "number": [0, 1], "unrelated": [0, 1]}
    assert bare["error_per_request"]["value"] == 0.5
    assert set(found["p_chr_auc"]) == {"fixed", "guarded"}


@pytest.mark.slow
def test_questions_with_intents_are_asked_in_turn(intents: str) -> None:
    found = document("measure", intents, "--keep-order", "--policy", "guarded", "--threshold", "0.9")
    [only] = found["rows"]
    assert (only["requests"], only["hits"], only["exact"], only["wrong"]) == (4, 2, 1, 0)
    assert only["recall"]["value"] == 1.0
    later = document("measure", intents, "--keep-order", "--policy", "guarded", "--threshold", "0.9", "--after", "2")
    assert (later["rows"][0]["requests"], later["rows"][0]["hits"]) == (2, 1)


@pytest.mark.slow
def test_a_log_has_hits_but_no_errors(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"question": "What is Python?"}\n\n{"question": "What is Python"}\n')
    found = document("measure", str(path), "--policy", "guarded", "--threshold", "0.92")
    assert (found["kind"], found["rows"][0]["hits"], found["rows"][0]["wrong"]) == ("log", 1, None)
    assert found["p_chr_auc"] == {}
    result = run("recommend", str(path))
    assert result.exit_code == 2
    assert "which answers are wrong" in result.stderr


@pytest.mark.slow
def test_the_answers_of_a_log_say_which_hits_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [
        ("What is the fee for a transfer?", "The fee is 5 euros."),
        ("What is the fee for a transfer", "It costs 5 euros."),
        ("What is the fee for one transfer?", "The fee is 9 euros."),
        ("What is the transfer fee?", ""),
    ]
    path.write_text("".join(json.dumps({"question": one, "answer": answer}) + "\n" for one, answer in lines))
    only = document("measure", str(path), "--policy", "fixed", "--threshold", "0.8")["rows"][0]
    assert (only["hits"], only["wrong"], only["unknown"]) == (3, 1, 1)
    assert only["error_per_hit"]["value"] == 0.5


@pytest.mark.slow
def test_the_same_seed_gives_the_same_document(intents: str) -> None:
    assert document("measure", intents, "--seed", "7") == document("measure", intents, "--seed", "7")


@pytest.mark.slow
def test_the_measured_policy_decides_as_the_service_does() -> None:
    """Compares the policy of the replay with the flow's own functions on the same candidates."""
    texts = [text for line in PAIRS.splitlines()[1:] for text in line.split(",")[:2]]
    product = open_product(load_settings(None))
    questions = Questions(texts, product, lambda what, done, total: None)
    decided = set()
    for asked, compared in enumerate(questions.compared):
        similarities = questions.vectors[:asked] @ questions.vectors[asked]
        near = [Near(int(place), float(similarities[place])) for place in (-similarities).argsort()[:5]]
        matches = [CacheMatch(answer_of(texts[one.place], one.place), "semantic", one.similarity, 0) for one in near]
        for threshold in (0.6, 0.8, 0.9, 0.98):
            served = best(up_to_the_first_fresh(consider(compared, matches, threshold, UNLIMITED)))
            offer = Offer(asked, [one for one in near if one.similarity >= threshold], questions.objection)
            chosen = Guarded(threshold).decide(offer) if offer.near else None
            assert (chosen.place if chosen else None) == (int(served.match.answer.entry) if served else None)
            decided.add(chosen is None)
    assert decided == {True, False}


def answer_of(question: str, place: int) -> CachedAnswer:
    return CachedAnswer(str(place), question, "an answer", "llama3.2", (), Usage(), 0, 1000, unread=())


# -- Files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"a,b,same\nx,y,1\nx,y,maybe\n", "a.csv:3: same must be 1 or 0, true or false; found 'maybe'"),
        ("a.csv", b"a,b,same\nx,y\n", "a.csv:2: has a different number of columns"),
        ("a.csv", b"a,b,same\nx,,1\n", "a.csv:2: b must be non-empty text"),
        ("a.csv", b"a,b\nx,y\n", "a.csv:2: needs the columns a, b, same, or question; found a, b"),
        ("a.csv", b'question\n"open\n', "a.csv:2: is not CSV: unexpected end of data"),
        ("a.csv", b"question\nx\n\xff\n", "a.csv:3: is not UTF-8"),
        ("a.csv", b"question\n", "a.csv: has no questions"),
        ("a.jsonl", b'{"question": "x"}\n{"question": \n', "a.jsonl:2: is not JSON"),
        ("a.jsonl", b'{"question": "x"}\n\n["x"]\n', "a.jsonl:3: must be a JSON object"),
        (
            "a.jsonl",
            b'{"question": "x", "intent": "y"}\n{"question": "x"}\n',
            "a.jsonl:2: intent must be non-empty text",
        ),
        ("a.jsonl", b"", "a.jsonl: has no questions"),
        ("a.csv", "a,b,same\nWhere is the caf\u00e9?,x,1\n".encode("cp1252"), "a.csv:2: is not UTF-8"),
        ("a.csv", "question\nx\n".encode("utf-16"), "a.csv:1: is not UTF-8"),
        ("a.jsonl", '{"question": "caf\u00e9"}\n'.encode("cp1252"), "a.jsonl:1: is not UTF-8"),
        ("a.csv", b"Name;Note\nx;y\n", "a.csv:2: needs the columns a, b, same, or question; found name, note"),
    ],
)
def test_an_unreadable_file_is_one_line_with_the_line_number(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    result = run("measure", str(path))
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_columns_of_other_data_sets_are_known(tmp_path: Path) -> None:
    path = tmp_path / "quora.csv"
    path.write_text("\ufeffid,question1,question2,is_duplicate\n1,x,y,0\n")
    assert read_samples(str(path)).same == [False]
    path.write_text("text,category\nWhere is my card?,card_arrival\n")
    assert read_samples(str(path)).intents == ["card_arrival"]
    path.write_text("prompt,response\nhello,hi\n")
    assert read_samples(str(path)).answers == ["hi"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mark.csv", b"\xef\xbb\xbfquestion,intent\nx,1\ny,1\n"),
        ("mark.jsonl", b'\xef\xbb\xbf{"question": "x", "intent": 1}\n\n{"question": "y", "intent": 1}\n'),
        ("line-ends.csv", b"question,intent\r\nx,1\ry,1\n\n"),
        ("semicolons.csv", b"question;intent\nx;1\ny;1\n"),
        ("tabs.csv", b"question\tintent\nx\t1\ny\t1\n"),
        ("capitals.csv", b"Question, Intent\nx,1\ny,1\n"),
    ],
)
def test_files_of_spreadsheets_are_read(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    found = read_samples(str(path))
    assert (found.asked, found.intents) == (["x", "y"], ["1", "1"])


@pytest.mark.slow
def test_a_huge_log_is_measured_in_part_only(tmp_path: Path) -> None:
    path = tmp_path / "huge.csv"
    path.write_text("question\n" + "what now\n" * (MOST_QUESTIONS + 1))
    result = run("measure", str(path))
    assert result.exit_code == 2
    assert f"huge.csv has {MOST_QUESTIONS + 1:,} questions: use --limit {MOST_QUESTIONS}" in result.stderr
    assert run("measure", str(path), "--limit", "1", "--policy", "fixed", "--threshold", "0.9").exit_code == 0


def test_the_pairs_of_fow_cache_are_half_traps() -> None:
    found = read_samples("fow")
    assert (len(found), sum(found.same)) == (600, 300)
    assert "scope" in found.kinds


def test_without_fow_cache_one_line_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fow_cache.data", None)
    with pytest.raises(Unreadable, match="pip install fow-cache"):
        read_samples("fow")


def test_a_sample_is_random_but_keeps_rows_together(tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    path.write_text("question,intent\n" + "".join(f"q{one},i{one}\n" for one in range(100)))
    samples = read_samples(str(path))
    part = samples.sample(10, 1, shuffled=True)
    assert len(part) == 10
    assert part == samples.sample(10, 1, shuffled=True)
    assert part != samples.sample(10, 2, shuffled=True)
    assert [one[1:] for one in part.asked] == [one[1:] for one in part.intents]
    assert samples.sample(2, 1, shuffled=False).asked == ["q0", "q1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("guess",), "guess: must be show, measure or recommend"),
        (("measure",), "measure needs a FILE"),
        (("measure", "nowhere.csv"), "nowhere.csv: No such file or directory"),
        (("measure", "fow", "--policy", "lax"), "--policy lax: must be fixed, guarded, verified"),
        (("measure", "fow", "--threshold", "0.2"), "--threshold"),
        (("measure", "fow", "--after", "600"), "--after 600: the file has 600 questions"),
    ],
)
def test_wrong_use_exits_with_2(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_folder_without_a_verifier_is_named(pairs: str, tmp_path: Path) -> None:
    result = run("measure", pairs, "--verifier", str(tmp_path))
    assert result.exit_code == 2
    assert str(tmp_path) in result.stderr


@pytest.mark.slow
def test_the_shipped_verifier_has_a_name(pairs: str) -> None:
    result = run("measure", pairs, "--verifier", "builtin", "--policy", "verified", "--json")
    assert result.exit_code == 0, result.output
    assert any(row["verifier"] for row in json.loads(result.stdout)["rows"])


# -- Reports -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_is_a_picture_and_a_page_that_needs_no_network(pairs: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    result = run("measure", pairs, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG\r\n")
    page = (out / "report.html").read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert re.findall(r'src="([^"]{21})', page) == ["data:image/png;base64"]
    assert page.count("<tr") == 1 + 18 + 4
    assert '<tr class="front"><td>guarded</td>' in page


def test_without_matplotlib_one_line_names_the_extra(
    pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("measure", pairs, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "pip install 'ragherd[reports]'" in result.stderr


@pytest.mark.slow
def test_one_question_is_counted_in_the_singular(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text("question,intent\nWhat is Python?,python\n")
    assert "one.csv: 1 question, embedder" in run("measure", str(path)).stdout
    path.write_text("a,b,same\nWhat is Python?,What is Python,1\n")
    assert "one.csv: 1 pair, embedder" in run("measure", str(path)).stdout


@pytest.mark.slow
def test_a_table_has_every_setting_with_its_interval(pairs: str) -> None:
    result = run("measure", pairs)
    assert "pairs.csv: 4 pairs, embedder all-MiniLM-L6-v2-int8" in result.stdout
    assert re.search(r"guarded +0\.92 +25\.0 \(4\.6 to 69\.9\) +0\.0 \(0\.0 to 79\.3\)", result.stdout)


# -- Recommend ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_is_recommended_on_four_pairs(pairs: str) -> None:
    result = run("recommend", pairs)
    assert result.exit_code == 1
    assert "No setting keeps wrong answers to 2 % of the hits with 95 % confidence." in result.stdout
    assert "149 hits in each half" in result.stdout
    found = run("recommend", pairs, "--json")
    assert found.exit_code == 1
    assert (json.loads(found.stdout)["holds"], json.loads(found.stdout)["env"]) == (False, {})


@pytest.mark.slow
def test_a_recommendation_prints_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    lines = [f"How much is {one} plus one?,How much is {one} plus one?,1\n" for one in range(40)]
    path.write_text("a,b,same\n" + "".join(lines))
    result = run("recommend", str(path), "--max-error-rate", "0.15", "--policy", "guarded", "--threshold", "0.9")
    assert result.exit_code == 0, result.output
    assert "Chosen on one half of pairs.csv, checked on the other (random halves)." in result.stdout
    assert result.stdout.splitlines()[-2:] == [
        "SEMANTIC_CACHE_POLICY=guarded",
        "SEMANTIC_CACHE_SIMILARITY_THRESHOLD=0.9",
    ]


# -- Show --------------------------------------------------------------------------------------------------------------

SAID = {
    "policy": "verified",
    "threshold": 0.92,
    "target_error": 0.02,
    "false_hit_rate": {"estimate": 0.0125, "low": 0.004, "high": 0.021, "samples": 1200},
    "labels": {"shadow": 40, "miss": 1150, "feedback": 10},
    "tightened": False,
}


@contextmanager
def service(status: int, body: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server with one answer. Yields its address and the keys that it was sent."""
    keys: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(f"{self.path} {self.headers.get('Authorization')}")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Prints nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", keys
        finally:
            server.shutdown()
            thread.join()


def test_without_arguments_the_running_service_is_asked() -> None:
    with service(200, json.dumps(SAID).encode()) as (url, keys):
        result = run("--url", url, key="secret")
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines() == [
            "policy: verified, threshold 0.92, target 2 %",
            "wrong hits: 1.25 % (0.40 to 2.10) from 1,200 labels",
            "labels: 40 shadow, 1,150 miss, 10 feedback",
            "tightened: no",
        ]
        assert json.loads(run("show", "--url", url, "--json").stdout) == SAID
    assert keys == ["/api/semantic-cache/quality Bearer secret", "/api/semantic-cache/quality None"]


def test_the_reason_shown_is_that_of_the_newest_tightening() -> None:
    newest_first = [{"change": "tightened", "reason": "sudden"}, {"change": "tightened", "reason": "estimate"}]
    said = {**SAID, "tightened": True, "level": 2, "history": newest_first}
    with service(200, json.dumps(said).encode()) as (url, _):
        assert run("--url", url).stdout.splitlines()[-1] == "tightened: yes, to level 2 (sudden)"


@pytest.mark.parametrize(("status", "code"), [(403, 1), (404, 1), (503, 3)])
def test_a_refusal_fails_with_the_service_s_reason(status: int, code: int) -> None:
    with service(status, b'{"detail": "Admin key required."}') as (url, _):
        result = run("show", "--url", url)
    assert result.exit_code == code
    assert f"{status}: Admin key required." in result.stderr


def test_a_service_that_does_not_answer_exits_with_3() -> None:
    with service(200, b"{}") as (url, _):
        pass
    result = run("show", "--url", url)
    assert result.exit_code == 3
    assert "cannot be reached" in result.stderr
