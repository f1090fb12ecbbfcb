"""`ragherd ask` and `ragherd explain`: ask a running service a question, or what its cache would do with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from ragherd.exits import FAILED, INTERRUPTED, USAGE_ERROR, exit_with
from ragherd.service_client import (
    AsJson,
    PriorityOption,
    ServiceClient,
    Url,
    clean,
    connected,
    new_table,
    print_document,
    priority_header,
    terminal,
)

ANSWER_SECONDS: Final = 600.0
"""A cold model may load for minutes."""
STREAM: Final = "-"
OPTIONAL: Final = ("verifier", "labels")
"""Columns of `explain` that are left out if no candidate has a value."""


class Freshness(StrEnum):
    """Directives of the request header `Cache-Control`."""

    NO_CACHE = "no-cache"
    NO_STORE = "no-store"
    ONLY_IF_CACHED = "only-if-cached"


Question = Annotated[str, typer.Argument(help="The question. - reads it from standard input.")]
Model = Annotated[str | None, typer.Option(help="Model of the answer. Default: LLM_MODEL of the service.")]
Tenant = Annotated[str | None, typer.Option(help="Tenant that asks. A user's key fixes it.")]
TopK = Annotated[int | None, typer.Option(min=0, max=20, help="Most passages to use; 0: no retrieval.")]
CacheControl = Annotated[Freshness | None, typer.Option(help="Limits the use of cached answers.")]


def ask(
    question: Question,
    model: Model = None,
    tenant: Tenant = None,
    top_k: TopK = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Use only documents with one of these tags. Can be repeated.")
    ] = None,
    cache: CacheControl = None,
    priority: PriorityOption = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Ask a question. The answer is printed as it is generated; its origin goes to standard error.

    With --json, the response of POST /query is printed once it is complete.
    """
    body, headers = _body(question, model, tenant, top_k, tag), {**_headers(cache), **priority_header(priority)}
    with connected(url, read_seconds=ANSWER_SECONDS) as service:
        try:
            if as_json:
                answer = service.send("POST", "/query", field="answer", json=body, headers=headers)
                print_document(answer)
            else:
                _stream(service, body, headers)
        except KeyboardInterrupt:
            raise exit_with("interrupted", INTERRUPTED) from None


def _body(
    question: str, model: str | None, tenant: str | None, top_k: int | None, tags: list[str] | None = None
) -> dict[str, Any]:
    text = sys.stdin.read() if question == STREAM else question
    if not text.strip():
        raise exit_with("the question is empty", USAGE_ERROR)
    fields = {"question": text, "model": model, "tenant": tenant, "top_k": top_k}
    filled = {name: value for name, value in fields.items() if value is not None}
    return {**filled, "documents": {"tags": tags}} if tags else filled


def _headers(cache: Freshness | None) -> dict[str, str]:
    return {"Cache-Control": cache.value} if cache else {}


def _stream(service: ServiceClient, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
    done: Any = None
    with service.stream("/query", json={**body, "stream": True}, headers=headers) as events:
        for name, data in events:
            if name == "token":
                typer.echo(clean(data["text"]), nl=False)
                sys.stdout.flush()
            elif name == "queued":
                terminal(stderr=True).print(Text(queued_line(data), style="dim"))
            elif name == "error":
                typer.echo()
                raise exit_with(f"{data.get('status')}: {clean(str(data.get('detail')))}", FAILED)
            elif name == "done":
                done = data
    typer.echo()
    if done is None:
        raise exit_with("the stream was cut off before its end", FAILED)
    for line in origin_lines(done):
        terminal(stderr=True).print(Text(line, style="dim"), soft_wrap=True)


def queued_line(place: Mapping[str, Any]) -> str:
    """Returns the position of a question that waits for Ollama."""
    seconds = place["estimated_seconds"]
    return f"waiting: position {place['position']:,}" + (f", about {seconds:.0f} s" if seconds is not None else "")


def origin_lines(answer: Mapping[str, Any]) -> list[str]:
    """Returns where an answer came from: its sources, the cache, the model and the time."""
    cache, usage = answer["cache"], answer["usage"]
    lines = [line for number, source in enumerate(answer["sources"], start=1) for line in _source_lines(number, source)]
    kind = f" ({cache['kind']}, similarity {cache['similarity']:.3f})" if cache["kind"] else ""
    age = f", {cache['age_seconds']:.0f} s old" if cache["age_seconds"] is not None else ""
    tokens = f", {usage['completion_tokens']:,} tokens" if usage["completion_tokens"] else ""
    seconds = answer["timings_ms"]["total"] / 1000
    last = (
        f"cache {cache['status']}{kind}{age}; {clean(answer['model'])}{tokens}; {seconds:.2f} s; {answer['request_id']}"
    )
    return [*lines, last]


def _source_lines(number: int, source: Mapping[str, Any]) -> list[str]:
    """Returns a source and its quote. An older service does not send page, heading and quote."""
    page = f", page {source['page']}" if source.get("page") else ""
    heading = f", {clean(source['heading'])}" if source.get("heading") else ""
    quote = [f'    "{clean(source["quote"])}"'] if source.get("quote") else []
    place = f"chunk {source['chunk']}{page}{heading}"
    return [f"[{number}] {clean(source['title'])}, {place}, score {source['score']:.3f}", *quote]


# -- Explain -----------------------------------------------------------------------------------------------------------


def explain(
    question: Question,
    model: Model = None,
    tenant: Tenant = None,
    top_k: TopK = None,
    cache: CacheControl = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Explain why a question is a hit or a miss: the nearest cached questions, the guards, and each policy.

    It answers, counts and changes nothing.
    """
    body = _body(question, model, tenant, top_k)
    with connected(url) as service:
        found = service.send(
            "POST", "/api/semantic-cache/explain", field="decision", json=body, headers=_headers(cache)
        )
    if as_json:
        print_document(found)
        return
    console = terminal()
    console.print(f"{found['decision']}: {clean(found['reason'])}")
    console.print(f"policy {found['policy']}, threshold {found['threshold']:g}, tenant {clean(found['tenant'])}")
    if found["unread"]:
        console.print(f"words that the embedder cannot read: {clean(', '.join(found['unread']))}")
    if found["candidates"]:
        console.print()
        console.print(candidate_table(found["candidates"]))
    console.print()
    console.print(_policies(found["policies"]))


def candidate_table(candidates: list[dict[str, Any]]) -> Table:
    """Returns what `explain` shows of the nearest cached questions."""
    titles = {
        "cosine": [f"{one['similarity']:.4f}" for one in candidates],
        "verifier": [f"{one['verifier']['score']:.2f}" if one["verifier"] else "" for one in candidates],
        "labels": [_labels(one["labels"]) for one in candidates],
        "verdict": [one["verdict"] for one in candidates],
        "question": [clean(one["question"]) for one in candidates],
        "why not": [clean(_objections(one)) for one in candidates],
    }
    shown = {title: cells for title, cells in titles.items() if title not in OPTIONAL or any(cells)}
    table = new_table(*shown)
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    return table


def _labels(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)


def _objections(candidate: Mapping[str, Any]) -> str:
    guards = [f"{one['guard']}: {one['detail']}" for one in candidate["guards"] if not one["agrees"]]
    grounded = candidate["grounded"]
    return "; ".join([*guards, *([f"grounded: {grounded['detail']}"] if grounded and not grounded["agrees"] else [])])


def _policies(policies: Mapping[str, Any]) -> Table:
    table = new_table("policy", "would", "why")
    for name, decided in policies.items():
        limit = (
            "" if decided["error"] is None else f"error at most {decided['error']:.3f}, limit {decided['limit']:.3f}"
        )
        table.add_row(name, decided["outcome"], "; ".join(filter(None, (clean(decided["reason"] or ""), limit))))
    return table
