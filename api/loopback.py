"""Recognizes addresses and host names of this machine. Pure."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback_address(text: str) -> bool:
    """Returns whether `text` is a loopback IP address, including IPv4 addresses mapped to IPv6."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def is_loopback_host(host: str) -> bool:
    """Returns whether a listening host is a loopback address or `localhost`. Does not resolve other names."""
    name = host.strip().strip("[]").lower()
    return name == "localhost" or is_loopback_address(name)


def is_secure(url: str) -> bool:
    """Returns whether nobody on the way can answer for a URL: it is https, or on this machine."""
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" or (parts.scheme == "http" and is_loopback_host(parts.hostname or ""))
    except ValueError:
        return False
