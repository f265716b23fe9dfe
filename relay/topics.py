"""Which topics a relay moves: comma-separated names, each of which may end in `*`."""

import re
from dataclasses import dataclass

from outbox.errors import ConfigurationError

_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,249}\*?|\*")


@dataclass(frozen=True, slots=True)
class TopicPatterns:
    """A parsed `--topics`.

    Attributes:
        text: canonical form, as registered.
        names: topics named in full.
        prefixes: what stands before a `*`; an empty one matches every topic.
    """

    text: str
    names: tuple[str, ...]
    prefixes: tuple[str, ...]

    @property
    def everything(self) -> bool:
        """Return whether every topic matches."""
        return "" in self.prefixes

    def match(self, topic: str) -> bool:
        """Return whether the topic is one of ours."""
        return topic in self.names or topic.startswith(self.prefixes or ("\0",))


def parse_topics(text: str) -> TopicPatterns:
    """Parse `--topics`.

    Raises:
        ConfigurationError: a part is neither a topic nor a topic's beginning with a `*`.
    """
    parts = sorted({part.strip() for part in text.split(",") if part.strip()})
    bad = [part for part in parts if not _PATTERN.fullmatch(part)]
    if bad or not parts:
        raise ConfigurationError(
            f"--topics {text!r} cannot be read: write names of A-Z a-z 0-9 . _ - separated by commas; each may end in *"
        )
    if "*" in parts:
        parts = ["*"]
    return TopicPatterns(
        ",".join(parts),
        tuple(part for part in parts if not part.endswith("*")),
        tuple(part[:-1] for part in parts if part.endswith("*")),
    )
