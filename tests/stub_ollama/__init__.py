"""A controllable Ollama for tests. It answers by rule, counts requests, and can fail at any byte.

In the test's event loop:                           As a separate process:

    async with running_stub() as stub:                  with stub_process() as stub:
        stub.behaviour("hang")                              stub.behaviour("hang")
        ... stub.base_url ...                               ... stub.base_url ...
        assert stub.stats["max_in_flight"] == 1             assert stub.stats["max_in_flight"] == 1

`behaviour.py` lists the modes. To run it by hand: `python -m tests.stub_ollama --port 11434`, then `curl -d '{"mode":
"hang"}' <control_url>/stub/behaviour` and `curl <control_url>/stub/stats`. The control address also answers while the
stub refuses connections.
"""

from tests.stub_ollama.behaviour import MODES, Behaviour
from tests.stub_ollama.process import StubProcess, stub_process
from tests.stub_ollama.server import StubOllama, running_stub

__all__ = ["MODES", "Behaviour", "StubOllama", "StubProcess", "running_stub", "stub_process"]
