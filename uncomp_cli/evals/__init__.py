"""Judge compression: tasks with known answers, one exact prefill shared by all settings, paired statistics."""
