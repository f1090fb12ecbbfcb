"""Ragherd's stand-in for Ollama: a very small model for laptops and tests with Ollama's native API.

Start it with `python -m api.embedded.model_server`. docs/model-server.md describes it.
"""
