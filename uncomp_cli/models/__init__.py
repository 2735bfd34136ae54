"""Get a model: built-in, directory, hub id or GGUF file."""
