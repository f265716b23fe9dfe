"""How our types are written into a migration."""

from typing import TYPE_CHECKING, Any, Literal

from outbox.tables import XID8

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext


class Rendering:
    """The `render_item` of an Alembic environment: the user's own first, then what we know."""

    def __init__(self, users: Any) -> None:
        self._users = users

    def __call__(self, kind: str, item: Any, context: "AutogenContext") -> str | Literal[False] | None:
        """Return the text of an item of a migration; False leaves it to Alembic."""
        rendered: str | Literal[False] | None = self._users(kind, item, context) if self._users else False
        if rendered is False and kind == "type" and isinstance(item, XID8):
            # Alembic writes types of others as they are, and never adds their import.
            context.imports.add("import outbox.tables")
            return "outbox.tables.XID8()"
        return rendered
