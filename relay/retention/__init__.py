"""Deleting what every relay has read and is old enough: the outbox's entries, and a log's records that are ours."""
