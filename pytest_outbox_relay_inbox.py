"""The pytest plugin: fixtures for the tests of applications, none of them automatic.

A module of its own beside the packages: pytest loads it at every start, before the paths of `pythonpath` are known, so
it must not import `outbox` (nor SQLAlchemy) until a test asks for a fixture.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from outbox import Outbox
    from outbox.testing import Recording, RecordingOutbox


@pytest.fixture
def outbox_recording() -> RecordingOutbox:
    """An Outbox without a table, whose `messages` are what transactions committed."""
    from outbox.testing import RecordingOutbox  # noqa: PLC0415 - see the module

    return RecordingOutbox()


@pytest.fixture
def outbox_record() -> Iterator[Callable[[Outbox], Recording]]:
    """Call it with the application's own Outbox: it records until the test ends, and needs no table meanwhile."""
    from outbox.testing import recording  # noqa: PLC0415 - see the module

    with ExitStack() as until_the_end:
        yield lambda outbox: until_the_end.enter_context(recording(outbox))
