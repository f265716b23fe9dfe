"""A proxy that knows where Kafka's requests begin and of what kind they are, and a broker behind it.

Where a request's answer is lost, or a request comes late, is what Kafka's guarantees are about; cuts after some number
of bytes seldom meet it. A client goes to the address that the broker names, so the broker has a second listener, and
names the proxy's address for it.
"""

from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

from kafka_server import KafkaServer
from postgresql_server import free_port
from proxy import Direction, Proxy, _Side


class Request(IntEnum):
    """Kinds of requests, by their numbers on the wire."""

    PRODUCE = 0
    OFFSET_FETCH = 9
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


class KafkaProxy(Proxy):
    """Forwards whole requests, and springs a trap at one of a kind."""

    def __init__(self, port: int) -> None:
        self._begun: dict[_Side, bytes] = {}
        self._trap: tuple[Request, Callable[[bytes], bytes]] | None = None
        self._held: list[tuple[_Side, bytes]] | None = None
        self.answered = 0
        super().__init__(port)

    def cut_before(self, kind: Request) -> None:
        """End all connections when the next request of a kind comes, which is lost."""
        self._set(kind, lambda _: self._cut_clients(b""))

    def cut_behind(self, kind: Request) -> None:
        """End all connections once the next request of a kind has gone to the broker: its answer is lost."""
        self._set(kind, self._cut_clients)

    def shut_behind(self, kind: Request) -> None:
        """Do as `cut_behind`, and let nobody in until `let_go`."""

        def shut(last: bytes) -> bytes:
            self._close_door()
            return self._cut_clients(last)

        self._set(kind, shut)

    def hold(self, kind: Request) -> None:
        """Keep the next request of a kind, and all that come behind it, until `let_go`."""
        self._set(kind, self._hold)

    def is_set(self) -> bool:
        """Return whether the trap still waits for its request."""
        return self._trap is not None

    def let_go(self) -> None:
        """Forward what was held, and let all pass again."""
        self._call(self._release)
        super().let_go()

    def _set(self, kind: Request, spring: Callable[[bytes], bytes]) -> None:
        self._call(lambda: setattr(self, "_trap", (kind, spring)))

    def _cut_clients(self, last: bytes) -> bytes:
        # The broker's ends are closed behind the client's, in good order: what was written to them arrives.
        clients = [side for side in self._sides if side.direction is Direction.TO_SERVER]
        self.cuts += 1
        self._loop.call_soon(lambda: [side.reset() for side in clients])
        return last

    def _hold(self, first: bytes) -> bytes:
        self._held = []
        return first

    def _release(self) -> None:
        self._trap = None
        held, self._held = self._held or [], None
        for side, request in held:
            if side.other is not None and not side.other.transport.is_closing():
                side.other.transport.write(request)

    def passed(self, data: bytes, side: _Side) -> tuple[bytes, bool]:
        """Return the whole requests that may pass; see `Proxy.passed`."""
        if side.direction is Direction.TO_CLIENT:
            self.answered += len(data)
            return super().passed(data, side)
        begun = self._begun.pop(side, b"") + data
        through = b""
        while len(begun) >= 4 and len(begun) >= (size := 4 + int.from_bytes(begun[:4])):
            through += self._one(begun[:size], side)
            begun = begun[size:]
        if begun:
            self._begun[side] = begun
        return super().passed(through, side)

    def _one(self, request: bytes, side: _Side) -> bytes:
        if self._trap is not None and int.from_bytes(request[4:6]) == self._trap[0]:
            (_, spring), self._trap = self._trap, None
            request = spring(request)
        if self._held is None:
            return request
        self._held.append((side, request))
        return b""


class ProxiedBroker:
    """A broker that is reached directly, and by way of a proxy.

    Attributes:
        server: the broker; it may be killed and started.
        proxy: before its second listener.
        url: directly.
        proxied_url: by way of the proxy.
    """

    def __init__(self, programs: Path) -> None:
        port, behind, controller = free_port(), free_port(), free_port()
        self.proxy = KafkaProxy(behind)
        names = {"CLIENT": port, "PROXIED": behind}
        listeners = [f"{name}://127.0.0.1:{number}" for name, number in {**names, "CONTROLLER": controller}.items()]
        advertised = [f"CLIENT://127.0.0.1:{port}", f"PROXIED://127.0.0.1:{self.proxy.port}"]
        self.server = KafkaServer(
            programs=programs,
            port=port,
            controller_port=controller,
            settings={
                "listeners": ",".join(listeners),
                "advertised.listeners": ",".join(advertised),
                "listener.security.protocol.map": "CLIENT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
            },
        )
        self.url = self.server.url()
        self.proxied_url = f"kafka://127.0.0.1:{self.proxy.port}"

    def mend(self) -> None:
        """Let the broker run and the proxy forward, whatever was done to them."""
        self.proxy.let_go()
        self.server.start()

    def kill_and_start(self) -> None:
        self.server.kill()
        self.server.start()

    def delete(self) -> None:
        self.server.delete()
        self.proxy.close()
