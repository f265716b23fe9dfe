"""For the tests of an application: what its transactions would have sent, with no table and no relay.

    with recording(app.outbox) as recorded:
        app.place_order(session, order)
        session.commit()
    assert recorded.one(type="OrderPlaced").key == str(order.id)

`RecordingOutbox` is an `Outbox` that records from the start. In pytest the fixtures `outbox_recording` and
`outbox_record` do the same.
"""

from outbox.testing.outbox import RecordingOutbox, message, recording
from outbox.testing.recording import Recording, decoded

__all__ = ["Recording", "RecordingOutbox", "decoded", "message", "recording"]
