"""Reading an outbox in commit order: one contract, one file a dialect."""
