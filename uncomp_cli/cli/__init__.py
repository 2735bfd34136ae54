"""The command line: the only place that uses typer."""
