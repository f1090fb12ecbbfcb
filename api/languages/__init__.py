"""Which language and script a text is in, and which of them an embedder was made for. Imports nothing local."""
