"""Identifies the language and script of a text, and the languages an embedding model supports. No local imports."""
