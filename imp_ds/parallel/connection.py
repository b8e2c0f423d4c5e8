"""Records between two processes over TCP, one line of JSON each, for what must not depend on the process group."""

import json
import socket

_LONGEST_LINE = 65536


def listen(backlog: int) -> socket.socket:
    """A server on a free port, for IPv4 and, where there is it, IPv6."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=backlog)


class Connection:
    """Records over a socket, one line of JSON each. A send never fails: what is wrong is noticed where it is read.

    Args:
        timeout_s: the other machine may be silent for so long.
    """

    def __init__(self, connected: socket.socket, timeout_s: float):
        self.socket, self._rest = connected, b""
        connected.settimeout(1.0)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: a machine that answers nothing for so long is gone
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(min(1000 * timeout_s, 2**31 - 1)))

    def send(self, record: dict) -> None:
        try:
            self.socket.sendall(json.dumps(record).encode() + b"\n")
        except OSError:
            pass

    def receive(self) -> list[dict] | None:
        """What has come; [] when nothing comes in time, None when the other side is gone."""
        try:
            came = self.socket.recv(_LONGEST_LINE)
        except TimeoutError as error:
            return None if error.errno else []  # with a number it is the kernel's, and the connection is lost
        except OSError:
            return None
        *lines, self._rest = (self._rest + came).split(b"\n")
        try:
            return [json.loads(line) for line in lines] if came and len(self._rest) < _LONGEST_LINE else None
        except ValueError:
            return None

    def receive_one(self) -> dict | None:
        """The first record of a connection, or None when there is none within a second."""
        records = self.receive()
        return records[0] if records and isinstance(records[0], dict) else None
