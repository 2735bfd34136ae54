"""Time and weigh the engine against stock transformers."""
