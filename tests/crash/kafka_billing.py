"""The handlers of `billing`, for topics of one run's own on a broker that others use too."""

import os

from billing import handle

from inbox import Inbox

SUFFIX = "TEST_TOPICS_SUFFIX"
"""The environment variable with the suffix of the topics' names."""

inbox = Inbox("billing")
by_offset = Inbox("billing", deduplicate="offset")

for _topic in ("orders", "payments"):
    _name = _topic + os.environ.get(SUFFIX, "")
    # A short time-out: when a consumer is stopped inside its transaction, the server ends that a little after it.
    inbox.handler(_name, timeout_seconds=2)(handle)
    by_offset.handler(_name, timeout_seconds=2)(handle)
