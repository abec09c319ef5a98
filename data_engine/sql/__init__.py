"""SQL over a dataset: a session that can read its tables and nothing else, and ways to hand on what it answers."""
