"""A FastAPI service with an outbox: its API, its async consumer, and the migrations that Alembic generated for it.

`models.py`, `api.py` and `consumer.py` are the service. `__main__.py` starts it, sends requests, and counts.
"""
