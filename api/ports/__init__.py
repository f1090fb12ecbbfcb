"""Interfaces between packages, and the values that cross them. Only `wiring` names the adapters that implement them."""
