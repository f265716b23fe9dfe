"""What makes the user's own Alembic right about our tables: autogenerate, upgrade, check and downgrade, all unedited.

Alembic 1.18 and newer find `setup` by the entry point `alembic.plugins`; with an older one we register when it is
loaded.
"""

import sys

from outbox.migrations.registering import PluginModule, setup

__all__ = ["setup"]

sys.modules[__name__].__class__ = PluginModule
