"""Thousands of documents: the road of `ask`, a model an actor, on Ray Data.

manifest   what there is to ask about, a name and a place each          results   one row a document, resumable
worker     documents into rows, by a model or what stands for it        cluster   Ray: actors, readers, windows
run        all of it, as events
"""
