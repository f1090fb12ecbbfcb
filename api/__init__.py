"""Ragherd: a RAG query service in front of Ollama whose workers and replicas share one memory in Redis."""

__version__ = "0.1.0"
