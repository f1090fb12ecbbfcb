"""Sizes a fleet with a cost model and a simulation. Pure: sends no request and changes nothing."""
