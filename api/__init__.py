"""Ragherd: a RAG query service in front of Ollama whose workers and replicas share one memory in Redis."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ragherd")
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0.0.0"
