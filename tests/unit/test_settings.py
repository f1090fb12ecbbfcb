"""An invalid value stops the start with one line that names the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.errors import SettingsError
from api.settings import AccessSettings, Settings, access_warnings, load_settings, variable_names


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variable_names():
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CIRCUIT_BREAKER_TIMEOUT", "soon"),
        ("CIRCUIT_BREAKER_TIMEOUT", "-1"),
        ("CIRCUIT_BREAKER_TIMEOUT", "inf"),
        ("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "0"),
        ("CIRCUIT_BREAKER_FAILURE_RATE_THRESHOLD", "101"),
        ("CIRCUIT_BREAKER_ENABLED", "perhaps"),
        ("SEMANTIC_CACHE_SIMILARITY_THRESHOLD", "1.5"),
        ("SEMANTIC_CACHE_MAX_SIZE", "many"),
        ("PORT", "99999"),
        ("WORKERS", "0"),
        ("WORKERS", "1000000"),
        ("LLM_MODEL", " "),
        ("MAX_REQUESTS", "-1"),
        ("WORKER_MEMORY_LIMIT", "101%"),
        ("WORKER_MEMORY_LIMIT", "0"),
        ("WORKER_MEMORY_LIMIT", "800 MB"),
        ("EMBEDDER", "magic"),
        ("EMBED_MODEL_PATH", "/nowhere/at/all"),
        ("RERANK_MODEL_PATH", "/nowhere/at/all"),
        ("PROMPT_TEMPLATE_PATH", "/nowhere/at/all"),
        ("RERANK_CANDIDATES", "0"),
        ("RERANK_TIMEOUT", "0"),
        ("REDIS_URL", "http://redis"),
        ("REDIS_URL", "redis://h:6379/3"),
        ("REDIS_URL", "redis+sentinel://a:26379,b:26379"),
        ("REDIS_URL", "redis+sentinel://a,b:26379/primary"),
        ("REDIS_PREFIX", "a b"),
        ("OLLAMA_BASE_URL", "localhost:11434"),
        ("OLLAMA_BASE_URL", ","),
        ("OLLAMA_BASE_URL", "http://a:1/,http://a:1"),
        ("OLLAMA_BASE_URL", "http://a:1#tier=1,http://a:1#tier=2"),
        ("OLLAMA_BASE_URL", "http://a:1#"),
        ("OLLAMA_BASE_URL", "http://a:1#tier=0"),
        ("OLLAMA_BASE_URL", "http://a:1#tier=101"),
        ("OLLAMA_BASE_URL", "http://a:1#tier=1.5"),
        ("OLLAMA_BASE_URL", "http://a:1#tier=1&tier=2"),
        ("OLLAMA_BASE_URL", "http://a:1#weight="),
        ("OLLAMA_BASE_URL", "http://a:1#gpu"),
        ("OLLAMA_KEEP_ALIVE", "5 minutes"),
        ("OLLAMA_NUM_CTX", "0"),
        ("OLLAMA_PROBE_INTERVAL", "31"),
        ("API_KEYS", "no-tenant"),
        ("API_KEYS", "a=k,b=k"),
        ("API_KEYS", "a=kk,b=schlüssel"),
        ("API_KEYS", "a="),
        ("API_KEYS", ","),
        ("API_KEYS", "a=kk,,b=ll"),
        ("API_KEYS", "a=k"),
        ("API_KEYS", "a=kk,a=kk"),
        ("API_KEYS", "a=k\tk"),
        ("ADMIN_KEYS", "kk,schlüssel"),
        ("ADMIN_KEYS", " "),
        ("ADMIN_KEYS", ","),
        ("ADMIN_KEYS", "k"),
        ("ADMIN_KEYS", "kk, kk"),
        ("ALLOW_ANONYMOUS", "perhaps"),
        ("ALLOWED_HOSTS", "https://rag.example"),
        ("ALLOWED_HOSTS", "rag.example:8001"),
        ("ALLOWED_HOSTS", "rag.*"),
        ("ALLOWED_HOSTS", "cafe:8001"),
        ("ALLOWED_HOSTS", "[::1"),
        ("ALLOWED_HOSTS", "[::1]:8001"),
        ("ALLOWED_HOSTS", ","),
        ("HEADER_TIMEOUT", "0"),
        ("BODY_TIMEOUT", "inf"),
        ("KEEPALIVE_TIMEOUT", "-1"),
        ("MAX_CONNECTIONS", "0"),
        ("SEMANTIC_CACHE_TENANT_SHARE", "1.1"),
        ("SEMANTIC_CACHE_TENANT_SHARE", "nan"),
        ("EMBED_MAX_INPUTS", "0"),
        ("EMBED_LANGUAGES", "english"),
        ("DOCUMENT_EMBED_TIMEOUT", "0"),
        ("DOCUMENT_EMBED_PATIENCE", "0"),
        ("CONNECTION_POOL_MIN_SIZE", "99"),
        ("METRICS_PORT", "8001"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_one_line_names_the_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings(None)
    line = str(caught.value)
    assert line.startswith(f"{name}: ")
    assert "\n" not in line


def test_a_backend_has_a_tier_and_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = "http://gpu:11434/, http://me:secret@big:1/o/#tier=2&weight=3 ,https://[::1]:2#weight=100"
    monkeypatch.setenv("OLLAMA_BASE_URL", urls)
    ollama = load_settings(None).ollama
    found = [(place.url, place.address, place.tier, place.weight) for place in ollama.places]
    assert found == [
        ("http://gpu:11434", "http://gpu:11434", 1, 1),
        ("http://me:secret@big:1/o", "http://big:1/o", 2, 3),
        ("https://[::1]:2", "https://[::1]:2", 1, 100),
    ]
    assert ollama.base_urls == tuple(place.url for place in ollama.places)


@pytest.mark.parametrize("name", ["EMBED_MODEL_PATH", "RERANK_MODEL_PATH"])
def test_the_error_names_the_missing_file_of_a_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(SettingsError, match=rf"^{name}: model\.onnx is missing in "):
        load_settings(None)
    (tmp_path / "model.onnx").touch()
    for value in (tmp_path, tmp_path / "model.onnx"):
        monkeypatch.setenv(name, str(value))
        with pytest.raises(SettingsError, match=rf"^{name}: tokenizer\.json is missing in "):
            load_settings(None)
    (tmp_path / "tokenizer.json").touch()
    load_settings(None)


@pytest.mark.parametrize("name", ["API_KEYS", "REDIS_URL"])
def test_secrets_are_not_repeated(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "s3cret://user:s3cret@host")
    with pytest.raises(SettingsError) as caught:
        load_settings(None)
    assert "s3cret" not in str(caught.value)


def test_the_environment_overrides_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("PORT=9001\nLLM_MODEL=from-file\nUNKNOWN=1\n")
    monkeypatch.setenv("PORT", "9002")
    settings = load_settings(str(file))
    assert (settings.server.port, settings.ollama.llm_model) == (9002, "from-file")


def test_the_limits_for_callers_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(
        "ALLOW_ANONYMOUS=true\nALLOWED_HOSTS=rag.example,*.b.example\nHEADER_TIMEOUT=5\nBODY_TIMEOUT=6\n"
        "KEEPALIVE_TIMEOUT=7.5\nMAX_CONNECTIONS=33\nSEMANTIC_CACHE_TENANT_SHARE=0.3\n"
    )
    settings = load_settings(str(file))
    server, access = settings.server, settings.access
    assert (access.allow_anonymous, access.hosts()) == (True, ("rag.example", "*.b.example"))
    assert (server.header_timeout, server.body_timeout, server.keepalive_timeout) == (5, 6, 7.5)
    assert (server.max_connections, settings.cache.tenant_share) == (33, 0.3)


def test_an_empty_value_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "")
    assert load_settings(None).server.port == 8001


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().cache.ttl = 1  # type: ignore[misc]


KEY = "not-to-be-shown"


@pytest.mark.parametrize(
    ("api", "admin", "named"),
    [
        (f"a={KEY},b={KEY}", "", "API_KEYS"),
        (f"a={KEY},a={KEY}", "", "API_KEYS"),
        ("", f"{KEY},{KEY}", "ADMIN_KEYS"),
        (f"a={KEY}", f"other-key,{KEY}", "ADMIN_KEYS"),
        (KEY, "", "API_KEYS"),
        (f"a={KEY},b=", "", "API_KEYS"),
        ("", f"{KEY},,other", "ADMIN_KEYS"),
        (f"a={KEY}\x07", "", "API_KEYS"),
    ],
)
def test_a_wrong_key_names_its_variable_and_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, api: str, admin: str, named: str
) -> None:
    monkeypatch.setenv("API_KEYS", api)
    monkeypatch.setenv("ADMIN_KEYS", admin)
    with pytest.raises(SettingsError) as caught:
        load_settings(None)
    assert str(caught.value).startswith(f"{named}: ")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "rag.example", "localhost.example", "128.0.0.1"])
def test_without_keys_the_service_listens_only_on_loopback(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("HOST", host)
    with pytest.raises(SettingsError) as caught:
        load_settings(None)
    line = str(caught.value)
    assert line.startswith("API_KEYS: ")
    assert host in line
    assert "ALLOW_ANONYMOUS=true" in line
    assert "\n" not in line
    monkeypatch.setenv("ADMIN_KEYS", "an-admin-key-alone")  # questions stay open to anyone
    with pytest.raises(SettingsError):
        load_settings(None)
    monkeypatch.setenv("ALLOW_ANONYMOUS", "true")
    load_settings(None)
    monkeypatch.delenv("ALLOW_ANONYMOUS")
    monkeypatch.setenv("API_KEYS", "acme=a-key")
    load_settings(None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST", "::ffff:127.0.0.1"])
def test_a_loopback_address_needs_no_key(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("HOST", host)
    load_settings(None)


def test_the_log_warns_of_weak_keys_and_of_anonymous_access() -> None:
    strong = "0123456789abcdef"
    assert access_warnings(AccessSettings(api_keys=f"a={strong}", admin_keys=strong[::-1]), ["0.0.0.0"]) == []
    assert access_warnings(AccessSettings(), ["127.0.0.1"]) == []
    [weak] = access_warnings(AccessSettings(api_keys="a=short-key"), ["0.0.0.0"])
    assert weak.startswith("API_KEYS: ")
    assert "short-key" not in weak
    [open_to_all] = access_warnings(AccessSettings(allow_anonymous=True), ["127.0.0.1", "10.0.0.7"])
    assert open_to_all.startswith("ALLOW_ANONYMOUS: anyone who can reach 10.0.0.7 may use the service")


def test_hosts_are_compared_in_lower_case_and_without_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_HOSTS", "RAG.example, *.Cluster.local,[::1],10.0.0.7,")
    assert load_settings(None).access.hosts() == ("rag.example", "*.cluster.local", "::1", "10.0.0.7")


def test_keys_map_to_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "acme=k1, globex = k2,")
    assert load_settings(None).access.tenants_by_key() == {"k1": "acme", "k2": "globex"}


def test_the_default_is_sixteen_partitions_on_a_cluster_and_one_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_settings(None).key_layout == ("rag:", 1, False)
    monkeypatch.setenv("REDIS_URL", "redis+cluster://user:pw@a:6379,b:6380")
    assert load_settings(None).key_layout == ("rag:", 16, True)
    monkeypatch.setenv("CACHE_PARTITIONS", "5")
    assert load_settings(None).key_layout == ("rag:", 5, True)


@pytest.mark.parametrize("url", ["redis+cluster://a", "redis+cluster://a:1,b", "redis+cluster://a:1/0"])
def test_a_bad_cluster_url_is_rejected(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(SettingsError, match="REDIS_URL: expected redis"):
        load_settings(None)
