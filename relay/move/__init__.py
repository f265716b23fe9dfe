"""Moving one chunk: inside the outbox's own database, or by producing to a log elsewhere."""
