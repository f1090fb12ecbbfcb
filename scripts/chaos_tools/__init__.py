"""Chaos: faults by seed on a real fleet under load with known answers, and checks that hold all the time."""
