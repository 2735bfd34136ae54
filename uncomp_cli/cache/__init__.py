"""Hold and shrink keys and values."""
