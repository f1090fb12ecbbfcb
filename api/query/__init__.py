"""How a question is answered. `answer_query.py` is the flow; the rest are its steps."""
