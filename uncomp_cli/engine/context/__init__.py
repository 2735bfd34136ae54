"""Texts that were read, with their caches: asked again, grown, saved and opened."""
