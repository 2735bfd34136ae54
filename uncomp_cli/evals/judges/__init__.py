"""Judges: every setting evicts from one exact prefill and is judged on the same sample."""
