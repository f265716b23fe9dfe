"""A standby of a server: a real one, which follows it."""

from collections.abc import Iterator
from contextlib import contextmanager

from postgresql_server import PostgresqlServer, free_port


@contextmanager
def standby_of(server: PostgresqlServer) -> Iterator[PostgresqlServer]:
    """Start a standby; what the server holds now is there."""
    standby = PostgresqlServer(settings={"fsync": "off"}, port=free_port())
    try:
        standby._reachable()
        standby._run(
            "pg_basebackup", "-D", str(standby.data), "-h", "127.0.0.1", "-p", str(server.port),
            "-U", "postgres", "-R", "-X", "stream", "-c", "fast",
        )  # fmt: skip
        yield standby.start()
    finally:
        standby.delete()
