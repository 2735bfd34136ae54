"""One pass of a model: its own layers with the engine's attention."""
