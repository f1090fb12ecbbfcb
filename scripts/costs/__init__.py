"""What `scripts/measure_costs.py` measures, one file a kind of cost."""
