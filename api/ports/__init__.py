"""What the query flow needs from the outside, as protocols. Adapters implement them; only `wiring` knows which."""
