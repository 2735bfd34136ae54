"""Decide: how many KV entries each layer and head keeps."""
