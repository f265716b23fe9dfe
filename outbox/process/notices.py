"""What a person should know and cannot be told all the time: once, when it changes, and again after an hour."""

import logging
import time
from collections.abc import Mapping

SAY_SECONDS = 3_600.0


class Notices:
    """Says what stands, by subject.

    Args:
        logger: says it.
        level: of what it says.
        again_seconds: after how long it is said again.
    """

    def __init__(
        self, logger: logging.Logger, *, level: int = logging.WARNING, again_seconds: float = SAY_SECONDS
    ) -> None:
        self._logger = logger
        self._level = level
        self._again_seconds = again_seconds
        self._said: dict[str, float] = {}

    def stand(self, words: Mapping[str, str]) -> None:
        """Say those that are new, or were said long ago; what is no longer among them is forgotten."""
        now = time.monotonic()
        self._said = {subject: said for subject, said in self._said.items() if subject in words}
        for subject, text in words.items():
            if subject not in self._said or now - self._said[subject] >= self._again_seconds:
                self._said[subject] = now
                self._logger.log(self._level, "%s", text)
