"""An Ollama for tests that does as it is told: answers by rule, counts, and misbehaves down to the socket.

In the test's own event loop:                       As a process of its own:

    async with running_stub() as stub:                  with stub_process() as stub:
        stub.behaviour("hang")                              stub.behaviour("hang")
        ... stub.base_url ...                               ... stub.base_url ...
        assert stub.stats["max_in_flight"] == 1             assert stub.stats["max_in_flight"] == 1

`behaviour.py` lists the modes. By hand: `python -m tests.stub_ollama --port 11434`, then
`curl -d '{"mode": "hang"}' <control_url>/stub/behaviour` and `curl <control_url>/stub/stats`; the control address
answers also while the stub refuses connections.
"""

from tests.stub_ollama.behaviour import MODES, Behaviour
from tests.stub_ollama.process import StubProcess, stub_process
from tests.stub_ollama.server import StubOllama, running_stub

__all__ = ["MODES", "Behaviour", "StubOllama", "StubProcess", "running_stub", "stub_process"]
