"""Consumer groups of the built-in log: who is alive, and whose is which partition."""
