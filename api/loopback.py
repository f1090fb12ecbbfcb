"""Which addresses and names mean this machine. Pure."""

from __future__ import annotations

import ipaddress


def is_loopback_address(text: str) -> bool:
    """Whether `text` is an IP address of the loopback interface, an IPv4 address mapped into IPv6 included."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def is_loopback_host(host: str) -> bool:
    """The same of a host to listen on, which may be a name. Names other than `localhost` are not looked up."""
    name = host.strip().strip("[]").lower()
    return name == "localhost" or is_loopback_address(name)
