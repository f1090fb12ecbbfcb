"""The measurements of `scripts/measure_costs.py`, one file per kind of cost."""
