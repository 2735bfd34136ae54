"""Answer questions about long documents with a local model in the memory the user has.

The package reads in the order in which data flows: text, tokens, plan, prefill, ragged cache, decode, stream.
Importing it loads neither torch nor transformers.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
