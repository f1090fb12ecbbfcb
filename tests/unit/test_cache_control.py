"""Parsing of `Cache-Control`."""

from __future__ import annotations

import pytest

from api.ports.question import CacheControl, parse


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", CacheControl()),
        ("no-cache", CacheControl(no_cache=True)),
        ("No-Store, max-age=0", CacheControl(no_store=True, max_age=0)),
        ('only-if-cached ,max-age="60"', CacheControl(only_if_cached=True, max_age=60)),
        ("max-age=-1", CacheControl()),
        pytest.param("max-age=" + "9" * 5000, CacheControl(max_age=2**31), id="9s"),
        pytest.param("max-age=" + "0" * 5000 + "7", CacheControl(max_age=7), id="0s"),
        ("max-age=soon, max-stale", CacheControl()),
        (",,", CacheControl()),
    ],
)
def test_it_is_parsed_as_in_the_rfc(header: str, expected: CacheControl) -> None:
    assert parse(header) == expected


def test_which_ages_may_be_read() -> None:
    assert parse("max-age=5").reads
    assert not parse("no-cache").reads
    assert not parse("no-store").reads
