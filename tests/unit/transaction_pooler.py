"""A transaction pooler with one server session, as small as can be: what a pool in transaction mode does."""

import socket
import struct
import threading

from sqlalchemy import make_url

_READY = b"Z"
_IDLE = b"I"
_WAITS_FOR_ANSWER = (b"Q", b"S")
_GOODBYE = b"X"


class TransactionPooler:
    """Lends its one session to whoever speaks, until the transaction ends. For servers that trust everybody."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lent = threading.Lock()
        self._server: socket.socket | None = None

    def __enter__(self) -> str:
        threading.Thread(target=self._accept, daemon=True).start()
        port = self._listener.getsockname()[1]
        query = {"sslmode": "disable", "gssencmode": "disable"}
        return self._url.set(host="127.0.0.1", port=port, query=query).render_as_string(hide_password=False)

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        if self._server is not None:
            self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            (length,) = struct.unpack("!i", _exactly(client, 4))
            startup = struct.pack("!i", length) + _exactly(client, length - 4)
            with self._lent:
                server = self._session(startup)
            client.sendall(b"R" + struct.pack("!ii", 8, 0) + _READY + struct.pack("!i", 5) + _IDLE)
            while self._transaction(client, server):
                pass

    def _session(self, startup: bytes) -> socket.socket:
        if self._server is None:
            self._server = socket.create_connection((self._url.host or "127.0.0.1", self._url.port or 5432))
            self._server.sendall(startup)
            while _message(self._server)[0] != _READY:
                pass
        return self._server

    def _transaction(self, client: socket.socket, server: socket.socket) -> bool:
        """Pass one transaction through; False when the client has gone."""
        kind, message = _message(client)
        if kind in (b"", _GOODBYE):
            return False
        with self._lent:
            while True:
                server.sendall(message)
                if kind in _WAITS_FOR_ANSWER:
                    answer = b""
                    while answer != _READY:
                        answer, passed = _message(server)
                        client.sendall(passed)
                    if passed.endswith(_IDLE):
                        return True
                kind, message = _message(client)


def _message(stream: socket.socket) -> tuple[bytes, bytes]:
    """Return the kind of the next message, and the whole of it; nothing at the end."""
    kind = stream.recv(1)
    if not kind:
        return b"", b""
    length = _exactly(stream, 4)
    return kind, kind + length + _exactly(stream, struct.unpack("!i", length)[0] - 4)


def _exactly(stream: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += stream.recv(size - len(found))
    return found
