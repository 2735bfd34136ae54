"""The commands that measure: eval, compare, bench and rope."""
