import pytest
import writers

from tests.databases import install


@pytest.fixture
def database(postgresql_url: str) -> str:
    """A PostgreSQL database with our tables and the workload's."""
    writers.prepare_database(install(postgresql_url))
    return postgresql_url
