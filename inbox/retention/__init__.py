"""Deleting a group's oldest ids: those of messages that the log cannot bring again."""
