"""Turn files into text."""
