"""The journal: a table whose newest row is the state. Every change inserts the step after the one it was decided on.

One idiom for all: a relay's lease and checkpoint, a consumer group's lease, an inbox's claims. Nothing on the path of
a chunk is
an UPDATE, because under a held snapshot the dead versions of a hot row cannot be removed and every change gets slower.

A step proves its claim twice: it locks the step it was decided on (a pruned or foreign one is not found), and it
inserts the next one under a unique key. Either failing means that somebody else went on: `Fenced`.
"""

from outbox.journal.lease import Held, Lease, Taken, boot_seconds

__all__ = ["Held", "Lease", "Taken", "boot_seconds"]
