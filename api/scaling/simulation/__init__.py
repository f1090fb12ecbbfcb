"""A fleet simulated event by event, on the measured costs. Needs the extra `scaling` (simpy)."""
