"""Do two questions that lie near each other mean the same? Pure; imports nothing local outside."""
