"""Readers that convert each kind of file to Markdown, in a separate process (`parse_process`)."""
