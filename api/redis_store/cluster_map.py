"""Which shard of a Redis Cluster has which slots, as CLUSTER SLOTS says: pure translation."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

SLOTS: Final = 16384


class Node(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class SlotMap:
    """The primary of each slot."""

    def __init__(self, ranges: Iterable[tuple[int, int, Node]] = ()) -> None:
        """`ranges`: first slot, last slot, who has them."""
        self._ranges = sorted(ranges)
        self._firsts = [first for first, _, _ in self._ranges]
        self.nodes = frozenset(node for _, _, node in self._ranges)

    def __bool__(self) -> bool:
        return bool(self._ranges)

    @property
    def is_whole(self) -> bool:
        """Whether each slot has a shard."""
        return sum(last - first + 1 for first, last, _ in self._ranges) == SLOTS

    def owner(self, slot: int) -> Node | None:
        """None where no shard has the slot."""
        at = bisect_right(self._firsts, slot) - 1
        if at < 0:
            return None
        _, last, node = self._ranges[at]
        return node if slot <= last else None

    @classmethod
    def read(cls, reply: Any, asked: Node) -> SlotMap:
        """From the reply of CLUSTER SLOTS. A node that does not know its own name is the one that was asked."""
        ranges = []
        for first, last, primary, *_ in reply:
            host = primary[0].decode() if isinstance(primary[0], bytes) else primary[0]
            ranges.append((int(first), int(last), Node(host or asked.host, int(primary[1]))))
        return cls(ranges)
