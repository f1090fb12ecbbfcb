"""Rules that decide whether two similar questions mean the same. Pure functions; the only local imports are
`api.languages` and `api.unicode_text`.
"""
