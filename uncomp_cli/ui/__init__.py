"""The terminal look: the only place that uses rich."""
