"""The knowledge base: turns documents into passages and retrieves them."""
