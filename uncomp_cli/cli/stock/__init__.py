"""The commands that look after what is there: models, presets, caches, settings, this installation."""
