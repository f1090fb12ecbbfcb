"""HTTP to hosts that somebody else named: only listed hosts, and no private addresses.

The address is checked after the name is resolved, and the connection goes to that very address. A name that resolves
differently a moment later (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpcore
import httpx

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
GLOBAL_UNICAST: Final = ipaddress.ip_network("2000::/3")
"""All that is assigned of the public IPv6 internet. Python knows some special ranges outside of it as global."""


@dataclass(slots=True)
class AllowedHosts:
    """Names as they are sent, in lower case. `private`: those that may have a private address."""

    names: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    all_private: bool = False

    def admits(self, host: str, address: str) -> bool:
        """Returns whether a connection to `host` may go to `address`."""
        return self.all_private or host.lower() in self.private or is_public(address)


def is_public(address: str) -> bool:
    """Returns whether an IP address is on the public internet, and so are addresses embedded in it."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        embedded = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
        if found in NAT64:
            embedded.append(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF))
        if any(one is not None and not is_public(str(one)) for one in embedded):
            return False
        if found.ipv4_mapped is not None or found in NAT64:
            return True
        if found not in GLOBAL_UNICAST:
            return False
    return found.is_global and not found.is_multicast


async def resolved(host: str, port: int) -> Sequence[str]:
    """Returns the addresses of a host, without duplicates. Raises `OSError`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves names itself, and connects only to admitted addresses."""

    def __init__(self, allowed: AllowedHosts, resolve: Resolve = resolved) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._network: httpcore.AsyncNetworkBackend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connects to the first admitted address that answers. Raises `httpcore.ConnectError` if there is none."""
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError, OverflowError) as error:  # names and ports that no host can have
            raise httpcore.ConnectError(f"{host} is not found: {getattr(error, 'strerror', None) or error}") from None
        admitted = [address for address in addresses if self._allowed.admits(host, address)]
        failure: Exception = httpcore.ConnectError(
            f"{host} has the private address {', '.join(addresses)}: write allow-private behind its URL to use it"
        )
        for address in admitted:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        """Sleeps."""
        await self._network.sleep(seconds)


class GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx's own transport (it translates httpcore's exceptions) over guarded connections."""

    def __init__(self, backend: GuardedBackend) -> None:
        super().__init__(trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(trust_env=False), max_connections=16, network_backend=backend
        )


def guarded_client(allowed: AllowedHosts, agent: str, resolve: Resolve = resolved) -> httpx.AsyncClient:
    """Returns a client that follows no redirects and uses no proxy."""
    return httpx.AsyncClient(
        transport=GuardedTransport(GuardedBackend(allowed, resolve)),
        headers={"User-Agent": agent, "Accept-Encoding": "identity"},
        timeout=30.0,
        trust_env=False,
    )
