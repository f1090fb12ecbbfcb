"""Guards for German, French, Spanish, Italian, Portuguese and Dutch, and what is cheap of a few other languages.

They read questions in which English words of grammar do not prevail.
"""
