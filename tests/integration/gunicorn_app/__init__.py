"""A tiny application for tests/integration/test_gunicorn.py: enough to see which worker answers, and how it leaves."""
