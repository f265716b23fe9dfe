"""How Alembic comes to know of us, without a line in the user's `env.py`. Alembic itself is never imported here."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import UpgradeOps
    from alembic.runtime.plugins import Plugin

NAME = "alembic.autogenerate.outbox_relay_inbox"
"""Ours among the plugins, in Alembic's own space: what begins so takes part without being named in `env.py`."""
_AUTOGENERATE = "alembic.autogenerate"
_PLUGINS = "alembic.runtime.plugins"


class PluginModule(ModuleType):
    """A module that can be iterated over: Alembic 1.18 and 1.19 take an entry point for a collection of modules."""

    def __iter__(self) -> Iterator[ModuleType]:
        yield self


def setup(plugin: "Plugin") -> None:
    """Add our comparators to a plugin; called by Alembic 1.18 and newer, while it is being imported."""
    from alembic.util import DispatchPriority  # noqa: PLC0415 - only Alembic calls this

    plugin.add_autogenerate_comparator(_before, "schema", priority=DispatchPriority.FIRST)
    plugin.add_autogenerate_comparator(_after, "schema", priority=DispatchPriority.LAST)


def _before(context: "AutogenContext", _operations: "UpgradeOps", _schemas: object) -> Any:
    from outbox.migrations.comparing import prepare  # noqa: PLC0415 - Alembic is not loaded to the end before this

    prepare(context)


def _after(context: "AutogenContext", operations: "UpgradeOps", _schemas: object) -> Any:
    from outbox.migrations.comparing import correct  # noqa: PLC0415 - the same

    correct(context, operations)


def _register(autogenerate: ModuleType) -> None:
    """Add our comparators to an Alembic that is loaded, unless it has found them by their entry point."""
    if _PLUGINS in sys.modules:
        with suppress(ValueError):  # there already
            sys.modules[_PLUGINS].Plugin.setup_plugin_from_module(sys.modules[__name__], NAME)
        return
    # Before 1.18 there is one list, run in order, that begins with Alembic's own comparator; it has no other way to
    # come before that, and will not get one: these versions are done.
    functions = autogenerate.comparators._registry["schema", "default"]  # noqa: SLF001
    functions[:] = [_before, *functions, _after]


class _WhenLoaded(MetaPathFinder, Loader):
    """Loads Alembic's autogenerate as it would have been, and registers with it then."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Stand in for the loader of the one module that we wait for."""
        if fullname != _AUTOGENERATE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Make the module as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module by its own loader, which it keeps."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register(module)


if hasattr(sys.modules.get(_AUTOGENERATE), "comparators"):
    _register(sys.modules[_AUTOGENERATE])
elif _AUTOGENERATE not in sys.modules:
    sys.meta_path.insert(0, _WhenLoaded())
