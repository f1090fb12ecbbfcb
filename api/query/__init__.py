"""How a question is answered. `service.py` is the flow; the rest are its steps."""
