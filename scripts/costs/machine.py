"""Describes the machine of a measurement."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

from scripts.costs.server import Server


def machine(server: Server) -> dict[str, str]:
    """Returns the date, the processor and the relevant versions."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": f"{os.cpu_count()} cores of {model.group(1) if model else platform.machine()}",
        "load": f"{os.getloadavg()[1]:.1f}",
        "python": platform.python_version(),
        "redis": str(server.client.info("server")["redis_version"]),
    }
