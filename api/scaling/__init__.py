"""How large a fleet has to be, on paper and by simulation. Pure: it asks nobody and changes nothing."""
