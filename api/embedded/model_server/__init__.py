"""Ragherd's stand-in for Ollama: a very small model for laptops and tests, behind Ollama's native API.

`python -m api.embedded.model_server` starts it as a process of its own; `docs/model-server.md` says what it can do.
"""
