"""Documents become passages, and passages are found again."""
