"""The ask and chat pipelines as a library: they yield events and know no terminal."""
