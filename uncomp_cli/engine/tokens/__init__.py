"""Text as token ids: prompts, conversations, chunks, and what is known of every token."""
