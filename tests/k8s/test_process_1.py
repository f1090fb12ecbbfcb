"""Start scripts as process 1 handle SIGTERM: a deleted pod stops at once."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.k8s.rendered import K8S
from tests.support.needed_tools import need_tool, not_here
from tests.support.waiting import wait_until

OLLAMA = """#!/bin/sh
case $1 in
  serve) exec sleep 60 ;;
  pull) echo waiting; exec sleep 60 ;;
esac
"""
NOBODY = "#!/bin/sh\nexit 1\n"


@pytest.mark.parametrize(
    ("script", "program", "text"),
    [("redis-sentinel/start-redis.sh", "redis-cli", NOBODY), ("ollama/pull-models.sh", "ollama", OLLAMA)],
    ids=["redis", "ollama"],
)
def test_a_pod_that_waits_ends_on_sigterm(tmp_path: Path, script: str, program: str, text: str) -> None:
    if os.geteuid() != 0:
        not_here("only root can make namespaces of processes")
    (tmp_path / program).write_text(text)
    (tmp_path / program).chmod(0o755)
    (tmp_path / "password").write_text("0123abcd")
    path, output = tmp_path / "start.sh", tmp_path / "output"
    path.write_text((K8S / "components" / script).read_text().replace("/etc/redis-secret", str(tmp_path)))
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "POD_NAME": "redis-0", "LLM_MODEL": "llama3.2"}
    environment |= {"OLLAMA_MODELS": str(tmp_path)}
    command = [need_tool("unshare"), "--pid", "--fork", "--kill-child", "/bin/sh", str(path)]
    with output.open("wb") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        try:
            wait_until(lambda: "waiting" in output.read_text())
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            os.kill(int(children), signal.SIGTERM)
            assert process.wait(20) == 143
        finally:
            process.kill()
