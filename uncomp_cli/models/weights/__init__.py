"""The weights of a model as they are held: numbers, or blocks of 32, a GGUF's own or made of numbers at load."""
