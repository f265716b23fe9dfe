"""What the two long-running processes share: connections, settings, signals, output. `import outbox` never loads it."""
