"""A tiny application for test_gunicorn.py that shows which worker answers and how it stops."""
