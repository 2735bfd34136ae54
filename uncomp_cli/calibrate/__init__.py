"""Calibrate: measure a model's uncertainty on sample texts, and keep it as a profile."""
