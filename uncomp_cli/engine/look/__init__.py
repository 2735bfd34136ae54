"""Where a model looks: while it answers, behind an answer, and what it loses."""
