"""Interfaces between rooms, and the values that cross them. Only `wiring` names the adapters that implement them."""
