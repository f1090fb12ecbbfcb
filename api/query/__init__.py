"""Answers questions: `service.py` is the flow, the other modules are its steps."""
