"""The model server as a process, with Ollama's client and with plain HTTP."""

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import ollama
import pytest

from api.embedders.minilm import MiniLM, model_files
from tests.support.model_server_process import COMMAND, ROOT, model_server

LABEL = "Ragherd's stand-in for Ollama: a very small model for laptops and tests"
EXACT = {"temperature": 0, "num_predict": 12}
QUESTION = [{"role": "user", "content": "What is a bridge?"}]
ENDLESS = {
    "model": "smollm2",
    "raw": True,
    "prompt": "Numbers: 1 2 3 4 5 6 7 8 9 10 11 12",
    "options": {"num_predict": -1, "temperature": 0, "repeat_penalty": 1.0},
}
"""Counts until the context is full: more than 4,000 tokens, over half a minute."""
PROMPTLY = 12.0
"""Seconds, on a busy machine, for an answer of three tokens; far below what the abandoned task would take."""


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with model_server() as url:
        yield url


@pytest.fixture(scope="module")
def client(base_url: str) -> ollama.Client:
    return ollama.Client(host=base_url, timeout=60)


@pytest.fixture(scope="module")
def http(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, timeout=60) as http:
        yield http


def test_it_says_what_it_is(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.text.startswith("Ollama is running")
    assert LABEL in page.text
    assert http.head("/").status_code == 200
    assert http.get("/api/version").json() == {"version": "0.0.0-ragherd-standin"}


def test_the_client_lists_and_shows_the_models(client: ollama.Client) -> None:
    assert [model.model for model in client.list().models] == ["smollm2:135m", "all-minilm:latest"]
    assert [model.name for model in client.ps().models] == ["smollm2:135m", "all-minilm:latest"]
    details = client.list().models[0].details
    assert details is not None
    assert (details.family, details.parameter_size, details.quantization_level) == ("llama", "134.52M", "Q4_1")
    shown = client.show("smollm2")
    assert shown.capabilities == ["completion"]
    assert LABEL in (shown.license or "")
    assert LABEL in (shown.modelfile or "")
    assert client.show("all-minilm:l6-v2").capabilities == ["embedding"]


def test_chat_answers_whole(client: ollama.Client) -> None:
    answer = client.chat("smollm2:135m", messages=QUESTION, options=EXACT)
    assert answer.message.role == "assistant"
    assert answer.message.content
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "length", 12)
    assert answer.prompt_eval_count is not None
    assert answer.prompt_eval_count > 10
    assert answer.total_duration is not None
    assert answer.eval_duration is not None
    assert 0 < answer.eval_duration < answer.total_duration


def test_chat_answers_as_a_stream(client: ollama.Client) -> None:
    *parts, last = client.chat("smollm2", messages=QUESTION, options=EXACT, stream=True)
    assert len(parts) > 5
    assert all(part.message.content and not part.done for part in parts)
    assert (last.done, last.done_reason, last.message.content, last.eval_count) == (True, "length", "", 12)


def test_generate_whole_and_as_a_stream(client: ollama.Client) -> None:
    whole = client.generate("smollm2", "What is a bridge?", options=EXACT)
    assert whole.response
    *parts, last = client.generate("smollm2", "What is a bridge?", options=EXACT, stream=True)
    assert "".join(part.response or "" for part in parts)
    assert (last.done, last.done_reason, last.response) == (True, "length", "")


def test_the_stream_is_ndjson_and_the_default(http: httpx.Client) -> None:
    reply = http.post("/api/chat", json={"model": "smollm2", "messages": QUESTION, "options": EXACT})
    assert reply.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert {"model", "created_at", "message", "done"} == lines[0].keys()
    durations = {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}
    assert {"done_reason", "prompt_eval_count", "eval_count", *durations} <= lines[-1].keys()


def test_a_stop_word_ends_the_answer(client: ollama.Client) -> None:
    text = [client.generate("smollm2", "Say something.", options=EXACT).response or "" for _ in range(2)][-1]
    word = text.split()[3]
    stopped = client.generate("smollm2", "Say something.", options={**EXACT, "stop": [word]})
    assert stopped.done_reason == "stop"
    assert stopped.response == text[: text.index(word)]


def test_the_seed_decides(client: ollama.Client) -> None:
    def answer(seed: int) -> str | None:
        options = {"seed": seed, "temperature": 1.5, "num_predict": 12}
        return client.generate("smollm2", "Name a colour.", options=options).response

    answer(1)  # from here on the prompt is in the model's cache: the same arithmetic each time
    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(2, 5)}) > 1


def test_a_schema_shapes_the_answer(client: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    answer = client.chat("smollm2", messages=QUESTION, format=schema, options={"num_predict": 40})
    assert isinstance(json.loads(answer.message.content or "")["ok"], bool)
    assert (client.generate("smollm2", "A list.", format="json", options=EXACT).response or "").startswith("{")


def test_system_template_and_raw_make_the_prompt(client: ollama.Client) -> None:
    def tokens(**fields: Any) -> int:
        return client.generate("smollm2", "Hello", options={"num_predict": 1}, **fields).prompt_eval_count or 0

    raw = tokens(raw=True)
    assert raw == 1
    assert tokens(template="{{ .System }} {{ .Prompt }}", system="Be brief.") in range(raw + 2, 10)
    assert tokens(system="Be brief.") > 10
    assert tokens(system="Be brief and kind and always honest.") > tokens(system="Be brief.")


def test_an_empty_request_loads_or_unloads(client: ollama.Client) -> None:
    assert client.chat("smollm2", messages=[]).done_reason == "load"
    assert client.generate("smollm2", "", keep_alive=0).done_reason == "unload"


def test_embeddings_are_those_of_the_service(client: ollama.Client, http: httpx.Client) -> None:
    texts = ["How do I reset my password?", "What is a bridge?"]
    expected = [vector.hex() for vector in MiniLM(model_files(None)).encode(texts)]
    assert [packed(vector) for vector in client.embed("all-minilm", texts).embeddings] == expected
    assert [packed(vector) for vector in client.embed("all-minilm:l6-v2", texts[0]).embeddings] == expected[:1]
    assert packed(client.embeddings("all-minilm", texts[0]).embedding) == expected[0]
    assert len(client.embed("all-minilm", texts[0], dimensions=16).embeddings[0]) == 16
    assert client.embed("all-minilm", []).embeddings == []


def packed(numbers: Any) -> str:
    import numpy as np

    return np.array(numbers, dtype="<f4").tobytes().hex()


def test_the_client_hears_of_an_unknown_model(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'llama9' not found") as caught:
        client.chat("llama9", messages=QUESTION)
    assert caught.value.status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/chat", b"{", 400, "invalid JSON"),
        ("/api/chat", b"", 400, "missing request body"),
        ("/api/chat", b"[]", 400, "an object is expected"),
        ("/api/chat", {"messages": QUESTION}, 400, "model is required"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/embed", {"model": "none", "input": "x"}, 404, "model 'none' not found"),
        ("/api/chat", {"model": "all-minilm", "messages": QUESTION}, 400, '"all-minilm" does not support chat'),
        ("/api/generate", {"model": "all-minilm", "prompt": "x"}, 400, '"all-minilm" does not support generate'),
        ("/api/embed", {"model": "smollm2", "input": "x"}, 400, '"smollm2" does not support embeddings'),
        ("/api/embed", {"model": "all-minilm", "input": [1]}, 400, "json: field input"),
        ("/api/chat", {"model": "smollm2", "messages": "hi"}, 400, "json: field messages"),
        ("/api/chat", {"model": "smollm2", "messages": QUESTION, "tools": [{}]}, 400, "does not support tools"),
        ("/api/generate", {"model": "smollm2", "prompt": "x", "format": "xml"}, 500, "invalid format"),
        ("/api/generate", {"model": "smollm2", "prompt": "x", "template": "{{ if }}"}, 400, "template"),
        (
            "/api/generate",
            {"model": "smollm2", "prompt": "x", "options": {"top_p": "x"}},
            500,
            'option "top_p" must be of type float32',
        ),
        ("/api/generate", {"model": "smollm2", "prompt": "word " * 5000}, 400, "exceeds the context length"),
    ],
)
def test_faults_are_told_as_ollama_tells_them(
    http: httpx.Client, path: str, body: bytes | dict[str, Any], status: int, message: str
) -> None:
    reply = http.post(path, content=body if isinstance(body, bytes) else json.dumps(body).encode())
    assert reply.status_code == status
    assert message in reply.json()["error"]


def test_an_unknown_page_is_not_found(http: httpx.Client) -> None:
    assert http.get("/api/nothing").status_code == 404


def short_answer_seconds(client: ollama.Client) -> float:
    started = time.monotonic()
    answer = client.generate("smollm2", "Hi", raw=True, options={"num_predict": 3})
    assert answer.done
    return time.monotonic() - started


def test_a_generation_blocks_neither_embeddings_nor_pages(client: ollama.Client, http: httpx.Client) -> None:
    with http.stream("POST", "/api/generate", json=ENDLESS) as reply:
        lines = reply.iter_lines()
        next(lines)
        assert client.embed("all-minilm", "meanwhile").embeddings
        assert client.list().models
        assert json.loads(next(lines))["done"] is False


@pytest.mark.timed
def test_who_leaves_a_stream_frees_the_model(client: ollama.Client, http: httpx.Client) -> None:
    with http.stream("POST", "/api/generate", json=ENDLESS) as reply:
        assert json.loads(next(reply.iter_lines()))["done"] is False
    assert short_answer_seconds(client) < PROMPTLY


@pytest.mark.timed
def test_who_stops_waiting_for_a_whole_answer_frees_the_model(client: ollama.Client, http: httpx.Client) -> None:
    with pytest.raises(httpx.ReadTimeout):
        http.post("/api/generate", json={**ENDLESS, "stream": False}, timeout=0.5)
    assert short_answer_seconds(client) < PROMPTLY


@pytest.mark.timed
def test_who_leaves_while_the_prompt_is_read_frees_the_model(client: ollama.Client, http: httpx.Client) -> None:
    long = {"model": "smollm2", "prompt": " ".join(f"{n}th word" for n in range(500)), "options": {"num_predict": 1}}
    with pytest.raises(httpx.ReadTimeout):
        http.post("/api/generate", json=long, timeout=0.3)
    assert short_answer_seconds(client) < PROMPTLY


def test_an_address_in_use_is_one_line_and_exit_code_1(base_url: str) -> None:
    port = str(urlsplit(base_url).port)
    ended = subprocess.run([*COMMAND, "--port", port], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "in use" in ended.stderr


def test_it_is_quiet_and_ends_with_0_in_the_middle_of_an_answer() -> None:
    process = subprocess.Popen(
        [*COMMAND, "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert LABEL in ready
        with httpx.stream("POST", f"{ready.split()[2]}/api/generate", json=ENDLESS, timeout=60) as reply:
            next(reply.iter_lines())
            process.terminate()
            rest, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert rest == ""
    assert "llama" not in said


def test_passages_are_quoted_with_their_numbers(client: ollama.Client) -> None:
    passages = (
        '<passage number="1" title="Canteen">\nThe canteen is on the third floor. It is open at noon.\n</passage>'
    )
    messages = [{"role": "user", "content": f"{passages}\n\nQuestion: On which floor is the canteen?"}]
    answer = client.chat("smollm2:135m", messages=messages)
    assert answer.message.content == "The canteen is on the third floor [1]."
    assert (answer.done, answer.done_reason) == (True, "stop")
    streamed = list(client.chat("smollm2:135m", messages=messages, stream=True))
    assert "".join(part.message.content or "" for part in streamed) == answer.message.content
    assert streamed[-1].eval_count == 8
