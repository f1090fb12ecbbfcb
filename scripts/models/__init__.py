"""Model checking: every interleaving of a few workers over the real Lua scripts, one Redis command at a time."""
