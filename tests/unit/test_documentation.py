"""The pages list what the code has: settings, faults, routes, keys, links."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import BaseSettings
from starlette.routing import Route

from api import errors
from api.app import create_app
from api.endpoints import dashboard, description, mcp_api
from api.errors import FAULTS, RagherdError
from api.guards.agreement import GUARDS
from api.redis_store.keys import CacheKeys, Keys
from api.settings import Settings, load_settings, variable_names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("k8s/**/*.md")])


def rows(page: Path, first_cell: str = r".*") -> list[list[str]]:
    """Returns the cells of every table row whose first cell matches."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if re.fullmatch(first_cell, row[0])]


def defaults() -> dict[str, Any]:
    """Returns the default of each variable, independent of the test's environment."""
    found: dict[str, Any] = {}
    for info in Settings.model_fields.values():
        concern = info.annotation
        assert isinstance(concern, type)
        assert issubclass(concern, BaseSettings)
        prefix = concern.model_config.get("env_prefix", "")
        found.update({f"{prefix}{name}".upper(): field.default for name, field in concern.model_fields.items()})
    return found


def as_written(default: Any) -> str:
    """Formats a default as a person writes it."""
    if default is None or default == "":
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:.15g}" if isinstance(default, int | float) else str(default)


# -- Settings ----------------------------------------------------------------------------------------------------------


def test_the_configuration_page_has_every_setting_with_its_default() -> None:
    documented = {row[0].strip("`"): row[2].strip("`") for row in rows(DOCS / "configuration.md", "`[A-Z_]+`")}
    assert documented == {name: as_written(default) for name, default in defaults().items()}
    assert list(documented) == variable_names()


def test_the_configuration_page_has_each_setting_once_with_its_type_and_meaning() -> None:
    found = rows(DOCS / "configuration.md", "`[A-Z_]+`")
    assert len(found) == len(variable_names())
    assert all(len(row) == 4 and all(row) for row in found)


def test_the_example_file_has_every_setting_with_its_default() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    documented = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", "\n".join(lines), re.MULTILINE))
    assert {name: value or "none" for name, value in documented.items()} == {
        name: as_written(default) for name, default in defaults().items()
    }
    assert list(documented) == variable_names()


@pytest.mark.slow
def test_the_example_file_gives_the_defaults_also_when_it_is_uncommented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in variable_names():
        monkeypatch.delenv(name, raising=False)
    uncommented = tmp_path / ".env"
    uncommented.write_text(re.sub(r"^# ([A-Z_]+=)", r"\1", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
    assert load_settings(str(uncommented)) == load_settings(None)


def test_the_example_file_sets_nothing_and_explains_each_line() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []
    for number, line in enumerate(lines):
        if re.match(r"# [A-Z_]+=", line):
            assert re.match(r"# .+\.$", lines[number - 1]), f"{line} has no line of meaning above it"


# -- Guards ------------------------------------------------------------------------------------------------------------


def test_the_cache_page_lists_every_guard_in_order() -> None:
    section = (DOCS / "semantic-cache.md").read_text().partition("\n## Guards\n")[2].partition("\n### ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [name for name, _, _ in GUARDS]


# -- The circuit breaker -----------------------------------------------------------------------------------------------


def test_the_table_of_faults_matches_the_code() -> None:
    documented = rows(DOCS / "http-api.md", "`[a-z_]+`")
    known = {fault.value for fault in FAULTS}
    assert [row for row in documented if row[0].strip("`") in known] == [
        [f"`{fault.value}`", row.meaning, row.breaker, str(row.status), "once" if row.retryable else "no"]
        for fault, row in FAULTS.items()
    ]


def test_the_breaker_page_names_every_breaker_setting_except_its_switch() -> None:
    text = (DOCS / "circuit-breaker.md").read_text()
    names = {name for name in variable_names() if name.startswith("CIRCUIT_BREAKER_")} - {"CIRCUIT_BREAKER_ENABLED"}
    assert {name for name in names if f"`{name}`" not in text} == set()


# -- HTTP --------------------------------------------------------------------------------------------------------------


@cache
def routes() -> set[str]:
    """Returns the routes that the app serves, such as `GET /health`, including its own description."""
    app = create_app(Settings())
    operations = {f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods}
    undescribed = [*app.routes, *description.router.routes, *dashboard.router.routes]
    found = operations | {f"GET {route.path}" for route in undescribed if isinstance(route, Route)}
    return found | {f"POST {mcp_api.PATH}"}


def test_the_api_page_has_every_route_and_no_other() -> None:
    cells = " ".join(row[0] for row in rows(DOCS / "http-api.md"))
    documented = set(re.findall(r"`((?:GET|POST|DELETE|PUT|PATCH) /[^`]*)`", cells))
    assert documented == routes()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_only_existing_routes(page: Path) -> None:
    named = set(re.findall(r"`((?:GET|POST|DELETE|PUT|PATCH) /[a-z/-]+)`", page.read_text()))
    if page.name != "model-server.md":  # another server's
        assert named <= routes()


def test_the_api_page_has_every_type_of_problem() -> None:
    text = (DOCS / "http-api.md").read_text()
    slugs = {kind.slug for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RagherdError)}
    assert {slug for slug in slugs if f"`{slug}`" not in text} == set()


# -- Redis -------------------------------------------------------------------------------------------------------------


def key_patterns() -> set[str]:
    """Returns every key and index of `Keys`, with placeholders for the variable parts."""
    keys = Keys()
    part = keys.partition("<scope>")
    return {
        *keys.breaker("<breaker>"),
        *keys.bulkhead("<bulkhead>"),
        keys.cache_entry("<scope>", "<digest>"),
        *part.feedback("<scope>", "<digest>"),
        part.quarantine(part.entry("<scope>", "<digest>")),
        f"{keys.served}<request>",
        f"{keys.served_count}<minute>",
        keys.recent,
        *part.eviction_keys,
        part.entries_of("<tenant>"),
        keys.cache_stats,
        part.index_uses,
        keys.janitor,
        part.invalidated,
        *keys.cache_warm_up("<job>"),
        keys.worker("<id>"),
        keys.workers,
        keys.cache_stats_batch("<worker>"),
        *(keys.history_hour("<hour>"), keys.history_minute("<hour>-<minute>"), keys.history_lease),
        *(keys.experiments, *keys.experiment("<experiment>")),
        keys.embedder("<model>"),
        keys.prober,
        keys.speeds("<name>"),
        keys.backend("<name>"),
        keys.digests("<name>"),
        keys.warm_up("<name>"),
        keys.prefix_key,
        keys.prefixes("<name>"),
        keys.condensed("<owner>:<digest>"),
        keys.audit,
        keys.erasures,
        keys.erasure_lease,
        *keys.flight("<scope>", "<digest>"),
        keys.retries,
        keys.document("<document>"),
        keys.document_text("<document>"),
        keys.document_draft("<document>"),
        keys.document_work("<document>"),
        keys.document_chunks("<document>"),
        keys.chunk("<embedder>", "<document>", "<revision>", "<number>"),  # type: ignore[arg-type]
        keys.corpus("<owner>"),
        keys.corpus_documents("<owner>"),
        keys.corpus_work,
        keys.corpus_state,
        keys.corpus_schema,
        keys.corpus_embedders,
        keys.cache_deleted,
        *(keys.labels, keys.labels_of("<scope>"), keys.labelled_pairs, keys.shadow_calls),
        *(keys.labelled_scopes, keys.retracted_labels),
        *(keys.quality, keys.quality_of("<scope>"), keys.quality_lease),
        *(keys.verifier, keys.verifier_model("<version>")),
        *(keys.access_keys, keys.access_key("<key>"), keys.limit("<owner>", "<subject>")),
        keys.limit_streams("<owner>", "<subject>"),
        keys.embedding_lease("<embedder>"),
        keys.upload("<token>"),
    }


def test_the_keys_page_has_every_key_and_no_other() -> None:
    documented = [row[0].strip("`") for row in rows(DOCS / "redis-keys.md", "`rag:.*`") if len(row) == 4]
    assert sorted(documented) == sorted(key_patterns())
    assert f"`{Keys().partition('').index('<embedder>', '<algorithm>')}`" in (DOCS / "redis-keys.md").read_text()


def test_the_keys_page_has_the_names_on_a_cluster() -> None:
    cells = [row[1] for row in rows(DOCS / "redis-keys.md", ".*`rag:.*") if len(row) == 2]
    documented = {name for cell in cells for name in re.findall(r"`(rag:[^`]+)`", cell)}
    keys = Keys(cluster=True, cache_partitions=1)
    part = CacheKeys("rag:", "{<partition>}")
    assert documented == {
        *(
            part.entry("<scope>", "<digest>"),
            part.flight("<scope>", "<digest>")[0],
            *part.feedback("<scope>", "<digest>"),
            part.quarantine(part.entry("<scope>", "<digest>")),
            f"{keys.served}<request>",
            f"{keys.served_count}<minute>",
            *part.eviction_keys,
            part.entries_of("<tenant>"),
        ),
        *(part.invalidated, part.index_uses, part.index("<embedder>", "<algorithm>")),
        *(keys.document("<document>"), keys.chunk("<embedder>", "<document>", "<revision>", "<number>")),  # type: ignore[arg-type]
        keys.speeds("<name>"),
        *(keys.passage_index("<embedder>"), keys.chunk_index("<embedder>")),
        *(keys.corpus("<owner>"), keys.corpus_documents("<owner>")),
        *(keys.corpus_work, keys.corpus_state, keys.upload("<token>"), *keys.cache_warm_up("<job>")),
        *(keys.corpus_embedders, keys.embedding_lease("<embedder>"), keys.corpus_schema),
        *(keys.worker("<id>"), keys.workers, keys.backend("<name>"), keys.digests("<name>")),
        *(keys.prefix_key, keys.prefixes("<name>")),
        *(keys.labels, keys.labels_of("<scope>"), keys.labelled_pairs, keys.shadow_calls),
        *(keys.labelled_scopes, keys.retracted_labels),
        *(keys.quality, keys.quality_of("<scope>"), keys.quality_lease),
        *(keys.verifier, keys.verifier_model("<version>")),
        *(keys.access_keys, keys.access_key("<key>")),
        *(keys.history_hour("<hour>"), keys.history_minute("<hour>-<minute>"), keys.history_lease),
        *(keys.experiments, *keys.experiment("<experiment>")),
        keys.condensed("<owner>:<digest>"),
    }


def test_key_patterns_covers_every_key_method() -> None:
    def spelled(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    fields = {"prefix", "cache_partitions", "cluster", "partition", "partitions"}
    assert spelled(Keys) - fields == {
        *("breaker", "bulkhead", "cache_entry", "cache_stats", "cache_stats_batch"),
        *("labels", "labels_of", "labelled_pairs", "shadow_calls", "labelled_scopes", "retracted_labels"),
        *("quality", "quality_of", "quality_lease", "quality_channel"),
        *("verifier", "verifier_model"),
        *("access_keys", "access_key", "access_keys_channel", "limit", "limit_streams"),
        *("worker", "workers", "embedder"),
        *("history_hour", "history_minute", "history_lease"),
        *("experiments", "experiment", "experiments_channel"),
        *("prober", "backend", "warm_up", "retries", "janitor", "prefix_key", "prefixes"),
        *("cache_warm_up", "cache_warm_ups"),
        *("document", "document_text", "document_draft", "document_work", "document_chunks"),
        *("chunk", "chunk_prefix", "chunk_index", "passage_index"),
        *("corpus", "corpus_documents", "corpus_work", "corpus_state"),
        *("embedding_lease", "upload", "corpus_schema", "corpus_embedders", "cache_deleted", "cache_entries"),
        *("chunk_indexes", "passage_indexes"),  # what the names of the indexes over chunks begin with
        "probe",  # never exists
        *("flight", "condensed", "digests", "speeds", "flight_channel", "bulkhead_channel"),
        *("served", "recent", "served_count"),
        *("audit", "erasures", "erasure_lease"),
    }
    assert spelled(CacheKeys) - {"prefix", "tag", "holds", "released"} == {
        *("entry", "eviction_keys", "entries_of", "invalidated", "index", "index_uses", "flight"),
        *("feedback", "quarantine", "quarantined", "votes"),
        *("entries", "embedded_by", "indexes", "quarantines"),  # what all of them begin with, and what an index covers
    }


# -- Links -------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Returns the headings as GitHub's link anchors."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_relative_to(ROOT), f"{target} leaves the project"
        assert linked.exists(), f"{target} is not there"
        if anchor:
            assert anchor in anchors(linked), f"{target}: no such heading"


def test_the_index_links_every_page() -> None:
    linked = set(re.findall(r"\]\(([a-z-]+\.md)\)", (DOCS / "index.md").read_text()))
    assert linked == {page.name for page in DOCS.glob("*.md")} - {"index.md"}


def test_the_architecture_page_names_files_that_exist() -> None:
    named = set(
        re.findall(r"`((?:api|ragherd|worker_config|tests|scripts)/[\w/.*]*)`", (DOCS / "architecture.md").read_text())
    )
    assert {path for path in named if not list(ROOT.glob(path.rstrip("/")))} == set()
