from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite(
    "log_contract", "log_contract_forget", "log_contract_groups", "log_contract_producer", "log_contract_tail"
)


@pytest.fixture(autouse=True)
def everything_closed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Close what a test opened, before its log goes away."""
    if "road" not in request.fixturenames:
        yield
        return
    from log_contract import OPENED  # noqa: PLC0415 - after its assertions can be rewritten

    request.getfixturevalue("road")
    yield
    while OPENED:
        OPENED.pop().close()
