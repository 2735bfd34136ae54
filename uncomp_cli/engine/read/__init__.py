"""Read a text as it was planned: attend, score, evict, thin."""
