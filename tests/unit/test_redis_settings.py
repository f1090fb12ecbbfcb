"""Redis settings: URLs, and TLS files that are checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from api.errors import SettingsError
from api.settings import load_settings, variable_names
from tests.support.tls_proxy import Certificates, certificates


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variable_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REDIS_URL", "rediss://redis.test")


@pytest.fixture
def held(tmp_path: Path) -> Certificates:
    return certificates(tmp_path / "tls", "redis.test")


def refused(monkeypatch: pytest.MonkeyPatch, **variables: object) -> str:
    """Returns the error for these variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SettingsError) as caught:
        load_settings(None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_valid_tls_files_are_accepted(monkeypatch: pytest.MonkeyPatch, held: Certificates) -> None:
    monkeypatch.setenv("REDIS_CA_FILE", str(held.ca))
    monkeypatch.setenv("REDIS_CERT_FILE", str(held.pair))
    assert load_settings(None).redis.ca_file == str(held.ca)
    monkeypatch.setenv("REDIS_KEY_FILE", str(held.folder / "client.key"))
    assert load_settings(None).redis.key_file is not None


def test_a_missing_or_invalid_ca_is_rejected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    line = refused(monkeypatch, REDIS_CA_FILE=tmp_path / "none.pem")
    assert line == f"REDIS_CA_FILE: '{tmp_path}/none.pem': No such file or directory"
    (tmp_path / "text.pem").write_text("no certificate")
    assert refused(monkeypatch, REDIS_CA_FILE=tmp_path / "text.pem").startswith("REDIS_CA_FILE: no certificate")


def test_a_key_that_does_not_match_its_certificate_is_rejected(
    monkeypatch: pytest.MonkeyPatch, held: Certificates
) -> None:
    trustme.CA().issue_cert("x@y.test").private_key_pem.write_to_path(held.folder / "other.key")
    line = refused(monkeypatch, REDIS_CERT_FILE=held.pair, REDIS_KEY_FILE=held.folder / "other.key")
    assert line.startswith("REDIS_CERT_FILE: ")
    assert line.endswith("the key does not match the certificate")


def test_a_missing_or_encrypted_key_is_rejected(monkeypatch: pytest.MonkeyPatch, held: Certificates) -> None:
    assert "in PEM form, or encrypted" in refused(monkeypatch, REDIS_CERT_FILE=held.ca)
    key = load_pem_private_key((held.folder / "client.key").read_bytes(), None)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (held.folder / "secret.key").write_bytes(secret)
    line = refused(monkeypatch, REDIS_CERT_FILE=held.pair, REDIS_KEY_FILE=held.folder / "secret.key")
    assert "encrypted" in line


def test_a_key_without_a_certificate_or_files_without_tls_are_rejected(
    monkeypatch: pytest.MonkeyPatch, held: Certificates
) -> None:
    assert refused(monkeypatch, REDIS_KEY_FILE=held.folder / "client.key").startswith("REDIS_KEY_FILE: ")
    line = refused(monkeypatch, REDIS_URL="redis://redis.test", REDIS_KEY_FILE="", REDIS_CA_FILE=held.ca)
    assert line.startswith("REDIS_CA_FILE: needs TLS")
    monkeypatch.setenv("BREAKER_REDIS_URL", "rediss://other.test")
    assert load_settings(None).breaker_redis.url == "rediss://other.test"


BAD = [
    "http://h",
    "redis://h/1",
    "redis://h?db=1",
    "redis://h?protocol=2",
    "redis://h:port",
    "redis://h:0",
    "redis://u:pass#word@h",
    "redis://u:pass/word@h",
    "redis+cluster://u:pass?word@h:1",
    "redis+cluster://h:65536",
    "rediss+sentinel://h/p",
    "redis+sentinel://h:99999/p",
    "rediss://h?ssl_cert_reqs=none",
]


@pytest.mark.parametrize("url", BAD)
def test_a_bad_breaker_redis_url_is_rejected(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    line = refused(monkeypatch, BREAKER_REDIS_URL=url)
    assert line.startswith("BREAKER_REDIS_URL: ")
    assert url not in line
    assert "pass" not in line.replace("password", "")


def test_a_sentinel_user_needs_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(monkeypatch, REDIS_SENTINEL_USERNAME="asking").startswith("REDIS_SENTINEL_USERNAME: ")
    monkeypatch.setenv("REDIS_SENTINEL_PASSWORD", "secret")
    assert load_settings(None).redis.sentinel_username == "asking"


@pytest.mark.parametrize(
    "url",
    ["redis://h", "unix:///run/redis.sock", "redis+sentinel://u:p%23w@[::1]:26379,h:1/p", "redis+cluster://[::1]:1"],
)
def test_a_valid_url_is_accepted(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    assert load_settings(None).redis.url == url
