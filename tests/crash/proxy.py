"""A TCP proxy on loopback that does to connections what networks do: cut them, hang, refuse, break off mid-message."""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any
from urllib.parse import urlsplit


class Direction(Enum):
    """Which way bytes go."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


class Proxy:
    """Forwards a loopback port to a server. All methods may be called from any thread; they act before they return."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._sides: set[_Side] = set()
        self._allowance: dict[Direction, int] = {}
        self.hung = False
        self.accepted = 0
        self.cuts = 0
        self.port = 0
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._await(self._listen())

    def url(self, url: str) -> str:
        """Return a server's URL by way of this proxy."""
        return url.replace(f":{urlsplit(url).port}/", f":{self.port}/", 1)

    def cut(self) -> None:
        """End all connections with a reset; new ones are let in."""
        self._call(self._cut)

    def hang(self) -> None:
        """Forward nothing, either way; connections stay, and new ones are accepted and hang too."""
        self._call(lambda: self._hang(hung=True))

    def refuse(self) -> None:
        """Let nobody in. Connections that are there stay."""
        self._call(self._close_door)

    def cut_after(self, count: int, direction: Direction) -> None:
        """End all connections once so many more bytes have gone this way, the rest of that message lost."""
        self._call(lambda: self._allowance.update({direction: count}))

    def let_go(self) -> None:
        """Forward and let in again; what hung goes on where it stood."""
        self._call(self._allowance.clear)
        self._call(lambda: self._hang(hung=False))
        if self._server is None:
            self._await(self._listen())

    def connections(self) -> int:
        """Return how many are open."""
        found: list[int] = []
        self._call(lambda: found.append(sum(side.direction is Direction.TO_SERVER for side in self._sides)))
        return found[0]

    def close(self) -> None:
        """End everything. Again: no effect."""
        if self._loop.is_closed():
            return
        self._call(self._close_door)
        self._call(self._cut)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(
            lambda: _Side(self, Direction.TO_SERVER), "127.0.0.1", self.port, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def _close_door(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _hang(self, *, hung: bool) -> None:
        self.hung = hung
        for side in self._sides:
            side.flow()

    def _cut(self) -> None:
        self.cuts += len(self._sides) > 0
        for side in list(self._sides):
            side.reset()

    def passed(self, data: bytes, side: "_Side") -> tuple[bytes, bool]:
        """Return what of the data that came in at this side may still pass, and whether that was the last."""
        left = self._allowance.get(side.direction)
        if left is None:
            return data, False
        self._allowance[side.direction] = left - len(data)
        if left > len(data):
            return data, False
        del self._allowance[side.direction]
        return data[:left], True

    async def join(self, client: "_Side") -> None:
        """Connect a client that came in to the server."""
        self.accepted += 1
        try:
            _, server = await self._loop.create_connection(
                lambda: _Side(self, Direction.TO_CLIENT, client), "127.0.0.1", self._target
            )
        except OSError:
            client.reset()
            return
        client.other = server
        client.flow()
        server.flow()

    def _call(self, action: Callable[[], Any]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (action(), done.set()))
        done.wait()

    def _await(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()


class _Side(asyncio.Protocol):
    """One end of a connection; what it reads goes in its direction, to the other end."""

    def __init__(self, proxy: Proxy, direction: Direction, other: "_Side | None" = None) -> None:
        self.proxy = proxy
        self.direction = direction
        self.other = other
        self.transport: Any = None
        self.full = False
        self._joining: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.proxy._sides.add(self)
        if self.other is None:
            self.transport.pause_reading()
            self._joining = asyncio.get_running_loop().create_task(self.proxy.join(self))

    def data_received(self, data: bytes) -> None:
        data, last = self.proxy.passed(data, self)
        if self.other is not None:
            self.other.transport.write(data)
        if last:
            # What was allowed has to leave before the reset, which would throw it away.
            asyncio.get_running_loop().call_later(0.01, self.proxy._cut)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, _: Exception | None) -> None:
        self.proxy._sides.discard(self)
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.close()

    def pause_writing(self) -> None:
        self._let_other(full=True)

    def resume_writing(self) -> None:
        self._let_other(full=False)

    def _let_other(self, *, full: bool) -> None:
        if self.other is not None:
            self.other.full = full
            self.other.flow()

    def flow(self) -> None:
        """Read, or do not, as things stand."""
        if self.transport.is_closing():
            return
        if self.proxy.hung or self.full or self.other is None:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def reset(self) -> None:
        """End this connection with a reset."""
        connection = self.transport.get_extra_info("socket")
        if connection is not None and not self.transport.is_closing():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
