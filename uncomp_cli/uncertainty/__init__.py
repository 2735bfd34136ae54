"""Measure how uncertain a model is, per layer and head."""
