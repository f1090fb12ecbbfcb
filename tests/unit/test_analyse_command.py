"""`ragherd analyse`: figures from CSV, JSON Lines and the logs of Ragherd and Ollama, and errors for bad files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ragherd.commands import commands
from ragherd.quality_samples import read_samples

ROOT = Path(__file__).parents[2]
ASKED = [
    ("What is the fee for a transfer?", "The fee is 5 euros."),
    ("what is the fee for a transfer?", "It costs 5 euros."),
    ("What is the fee for one transfer?", "The fee is 9 euros."),
    ("How do I bake bread?", "Mix flour, water, salt and yeast, and bake the dough."),
]


def run(*arguments: str, **settings: str) -> Result:
    return CliRunner().invoke(commands, ["analyse", *arguments], env={"COLUMNS": "200", **settings})


def document(*arguments: str, **settings: str) -> dict[str, Any]:
    result = run(*arguments, "--json", **settings)
    assert result.exit_code == 0, result.output
    [line] = result.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def written(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def answered(tmp_path: Path) -> str:
    return written(tmp_path / "log.jsonl", [{"question": one, "answer": answer} for one, answer in ASKED])


# -- Figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_policy_has_its_hits_and_the_answers_say_which_are_wrong(answered: str) -> None:
    found = document(answered, SEMANTIC_CACHE_SIMILARITY_THRESHOLD="0.8")
    assert (found["questions"], found["judged_by"], found["policy"]) == (4, "answer", "guarded")
    policies = found["by_policy"]
    assert list(policies) == ["exact", "fixed", "guarded", "verified"]
    assert [(one["hits"], one["equal"]) for one in policies.values()][:2] == [(1, 1), (2, 1)]
    assert (policies["exact"]["wrong"], policies["fixed"]["wrong"]) == (0, 1)
    assert policies["fixed"]["wrong_per_hit"] == 0.5
    low, high = policies["fixed"]["wrong_per_hit_interval"]
    assert 0 <= low < 0.5 < high <= 1
    assert found["hit_rate"] == policies["guarded"]["hit_rate"]


@pytest.mark.slow
def test_a_log_without_answers_does_not_judge(tmp_path: Path) -> None:
    file = written(tmp_path / "log.jsonl", [{"question": one} for one, _ in ASKED])
    found = document(file)
    assert found["judged_by"] is None
    assert list(found["by_policy"]) == ["exact", "fixed", "guarded"]
    assert {one["wrong_per_hit"] for one in found["by_policy"].values()} == {None}
    assert "Wrong answers are not known: the file has no column answer or intent." in run(file).stdout


@pytest.mark.slow
def test_intents_judge_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("question,intent\nWhere is my card?,card\nWhere is my card?,loss\nwhere is my card?,card\n")
    found = document(str(path))
    assert found["judged_by"] == "intent"
    assert (found["by_policy"]["exact"]["hits"], found["by_policy"]["exact"]["wrong"]) == (2, 1)


@pytest.mark.slow
def test_given_tokens_and_the_price_say_what_is_saved(tmp_path: Path) -> None:
    counts = [(100, 200), (100, 400), (10, 20)]
    questions = ["Where is my card?", "where is my card?", "How do I bake bread?"]
    file = written(
        tmp_path / "log.jsonl",
        [
            {"question": one, "prompt_eval_count": prompt, "eval_count": answer}
            for one, (prompt, answer) in zip(questions, counts, strict=True)
        ],
    )
    found = document(file, "--price", "2000", PRICE_PER_MILLION_TOKENS="1")
    assert found["spent"] == {
        "tokens": 830,
        "money": 1.66,
        "price_per_million_tokens": 2000,
        "tokens_given": 3,
        "tokens_estimated": 0,
        "answers_assumed": 0,
    }
    exact = found["by_policy"]["exact"]
    assert (exact["saved_tokens"], exact["saved_money"]) == (500, 1.0)
    assert document(file, PRICE_PER_MILLION_TOKENS="1000")["spent"]["money"] == 0.83
    assert document(file)["spent"]["money"] is None


@pytest.mark.slow
def test_tokens_that_the_file_does_not_have_are_estimated(answered: str, tmp_path: Path) -> None:
    assert document(answered)["spent"]["answers_assumed"] == 0
    file = written(tmp_path / "short.jsonl", [{"question": "hello", "tokens": ["h"]}])
    few, many = (document(file, "--answer-tokens", number)["spent"] for number in ("10", "510"))
    assert many["tokens"] - few["tokens"] == 500
    assert (few["tokens_given"], few["tokens_estimated"], few["answers_assumed"]) == (0, 1, 1)


@pytest.mark.slow
def test_the_prompts_of_the_file_say_what_the_prompt_cache_reuses(tmp_path: Path) -> None:
    prompts = ["system: one", "system: two", "other"]
    file = written(tmp_path / "log.jsonl", [{"question": f"q {one}", "prompt": one} for one in prompts])
    assert document(file)["prefix_reuse"] == {
        "share": 8 / 27,
        "characters": 27,
        "reused": 8,
        "prompts": "logged",
    }


@pytest.mark.slow
def test_without_prompts_they_are_built_from_the_template(tmp_path: Path) -> None:
    file = written(tmp_path / "log.jsonl", [{"question": "a"}, {"question": "b"}])
    reuse = document(file)["prefix_reuse"]
    assert reuse["prompts"] == "built"
    assert reuse["reused"] == reuse["characters"] / 2 - 1


@pytest.mark.slow
def test_the_questions_asked_most_are_listed(answered: str) -> None:
    repeated = document(answered)["repeated"]
    assert (repeated["questions"], repeated["different"], repeated["share"]) == (1, 3, 0.25)
    assert repeated["most_asked"] == [{"question": ASKED[0][0], "times": 2}]


@pytest.mark.slow
def test_a_limit_takes_the_first_questions_and_says_so(answered: str) -> None:
    found = document(answered, "--limit", "2")
    assert (found["questions"], found["questions_in_file"], found["by_policy"]["exact"]["hits"]) == (2, 4, 1)
    assert "log.jsonl: the first 2 of 4 questions, threshold 0.92" in run(answered, "--limit", "2").stdout


@pytest.mark.slow
def test_the_summary_begins_with_the_policy_in_use(answered: str) -> None:
    printed = run(answered, "--price", "3", SEMANTIC_CACHE_POLICY="fixed", SEMANTIC_CACHE_SIMILARITY_THRESHOLD="0.8")
    assert printed.exit_code == 0, printed.output
    lines = printed.stdout.splitlines()
    assert lines[0] == "log.jsonl: 4 questions, threshold 0.8"
    assert re.fullmatch(
        r"With the policy fixed, 50\.0 \(.+\) % of them would be answered from the cache; "
        r"50\.0 \(.+\) % of these answers would be wrong\.",
        lines[1],
    )
    assert re.fullmatch(r" exact +25\.0 \(.+\) +0\.0 \(.+\) +0 +\d+ +0\.000\d+ *", lines[3])
    assert document(answered, SEMANTIC_CACHE_POLICY="observe")["policy"] == "guarded"  # it serves nothing


# -- Logs --------------------------------------------------------------------------------------------------------------


OLLAMA = (
    '[GIN] 2026/01/01 - 00:00:00 | 200 | 1.2s | 127.0.0.1 | POST "/api/chat"\n'
    'time=2026-01-01T00:00:00Z level=DEBUG source=routes.go:1522 msg="chat request" images=0 prompt='
    r'"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi'
    r'<|im_end|>\n<|im_start|>user\nWhat is \"caf\u00e9\"?\tC:\\n<|im_end|>\n<|im_start|>assistant\n"'
    "\n"
    'Jan 01 host ollama[7]: level=DEBUG msg="chat request" images=1 prompt="<|start_header_id|>user<|end_header_id|>'
    r'\n\nWhat now?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"'
    "\n"
    'level=DEBUG msg="generate request" images=0 prompt=Why\n'
    'level=DEBUG source=server.go:1388 msg="completion request" images=0 prompt=197 format=""\n'
    'level=TRACE source=server.go:1389 msg="completion request" prompt="<start_of_turn>user\\nWhere?<end_of_turn>"\n'
    'level=DEBUG msg="chat request" images=0 prompt="cut off'
)


def test_the_log_of_ollama_has_the_last_user_turn_of_each_prompt(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text(OLLAMA)
    found = read_samples(str(path))
    assert found.asked == ['What is "café"?\tC:\\n', "What now?", "Why", "Where?"]
    assert found.prompts[0].startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


def test_a_hostile_log_line_is_read_in_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text('msg="chat request" images=0 prompt="\\' * 100_000 + '\nmsg="chat request" prompt=x\n')
    assert read_samples(str(path)).asked[-1] == "x"


LOGGING = """
from api.observability.logs import FrequentEvent, configure_logging
configure_logging("info")
import structlog
from api.endpoints.access_log import AccessLog
from api.endpoints.middleware import EndedRequest
from api.ports.question import AnswerFinished, Query, Timings
from api.values import CacheStatus

log = AccessLog(FrequentEvent("ragherd.access", "request"), questions=SHOWN)
structlog.get_logger("ragherd").info("started")
for question in ("What is Python?", "What is Redis?"):
    state = {"query": Query(question=question, tenant="public", model="llama3.2")}
    log(EndedRequest("POST", "/query", 499, 0.1, 0), state)
    state["answered"] = AnswerFinished("an answer", "llama3.2", CacheStatus.MISS, Timings())
    log(EndedRequest("POST", "/query", 200, 0.1, 100), state)
    log(EndedRequest("GET", "/api/workers", 200, 0.1, 100), {})
"""


def log_of_ragherd(*, shown: bool) -> list[str]:
    """Returns what a worker logs, in a new process, because logging is configured once."""
    program = LOGGING.replace("SHOWN", str(shown))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stderr.splitlines(keepends=True)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "prefix"), [("a.jsonl", ""), ("a.log", ""), ("a.log", "ragherd-1  | ")])
def test_the_log_of_ragherd_has_the_answered_questions(tmp_path: Path, name: str, prefix: str) -> None:
    path = tmp_path / name
    path.write_text("".join(f"{prefix}{line}" for line in log_of_ragherd(shown=True)))
    assert read_samples(str(path)).asked == ["What is Python?", "What is Redis?"]


@pytest.mark.slow
def test_a_log_that_hides_questions_names_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("".join(log_of_ragherd(shown=False)))
    result = run(str(path))
    assert result.exit_code == 2
    assert result.stderr == f"ragherd: {path}: the log does not show questions: set LOG_QUESTIONS=true\n"


# -- Wrong use ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"question": "x"}\n{"question": 3}\n', "a.jsonl:2: question must be non-empty text"),
        ("a.jsonl", '{"question": \n', "a.jsonl:1: is not JSON"),
        ("a.csv", "name\nx\n", "a.csv:2: needs the columns a, b, same, or question; found name"),
        ("a.csv", "a,b,same\nx,y,1\n", "a.csv: has pairs; analyse needs a log with the column question"),
        ("a.log", 'started\n{"level": 1}\n', "a.log: has no questions"),
        (
            "a.log",
            'msg="completion request" images=0 prompt=9 format=""\n',
            "a.log: the log does not show prompts: run",
        ),
        ("a.jsonl", "", "a.jsonl: has no questions"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    result = run(str(path), "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("nowhere.csv",),
        ("--limit", "0"),
        ("--limit", "50001"),
        ("--price", "-1"),
        ("--price", "nan"),
        ("--price", "inf"),
    ],
)
def test_wrong_use_exits_with_2(answered: str, arguments: tuple[str, ...]) -> None:
    file = [] if arguments[0] == "nowhere.csv" else [answered]
    result = run(*file, *arguments)
    assert result.exit_code == 2
    assert result.stderr


def test_an_invalid_setting_exits_with_2(answered: str) -> None:
    result = run(answered, SEMANTIC_CACHE_SIMILARITY_THRESHOLD="2")
    assert result.exit_code == 2
    assert "SEMANTIC_CACHE_SIMILARITY_THRESHOLD" in result.stderr
