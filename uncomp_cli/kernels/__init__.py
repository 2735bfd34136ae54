"""A decode step in one call: a small C library, and what Python knows of it."""
