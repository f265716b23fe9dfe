"""Part three of the road: the consumer hands each message to a handler, whose effects happen exactly once.

inbox = Inbox("billing")

@inbox.handler("orders", type="OrderPlaced")
def charge(delivery: Delivery[OrderPlaced], session: Session) -> None: ...
"""

from inbox.delivery import Delivery, Reject, Retry
from inbox.group import Inbox

__all__ = ["Delivery", "Inbox", "Reject", "Retry"]
