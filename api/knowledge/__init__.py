"""Turns documents into passages and retrieves them."""
