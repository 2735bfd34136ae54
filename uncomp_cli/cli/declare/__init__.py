"""How commands are declared: options, settings, limits, and what every failure comes to."""
