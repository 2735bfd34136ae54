"""Run a model with a plan."""
