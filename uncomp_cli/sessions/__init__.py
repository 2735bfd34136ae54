"""Conversations that last: what a session's file says, and where it lies."""
