from collections.abc import Callable

import pytest
import writers
from sqlalchemy import MetaData, create_engine

from outbox.process.urls import parse_url, with_driver
from outbox.tables import log_tables, outbox_tables


@pytest.fixture
def outbox_made() -> Callable[[str], str]:
    """Make the product's tables and the workload's in a database; returns its URL."""

    def make(url: str) -> str:
        engine = create_engine(with_driver(parse_url(url)))
        metadata = MetaData()
        outbox_tables(metadata)
        log_tables(metadata)
        metadata.create_all(engine)
        engine.dispose()
        if url.startswith("postgresql"):
            writers.prepare_database(url)
        return url

    return make


@pytest.fixture
def database(postgresql_url: str, outbox_made: Callable[[str], str]) -> str:
    """A PostgreSQL database with an outbox, a log, and the workload's tables."""
    return outbox_made(postgresql_url)
