"""Lines of JSON over a socket: whole records only, however they arrive, and an end that is distinguished from a silence."""

import errno
import socket

import pytest

from imp_ds.parallel.connection import Connection


@pytest.fixture
def pair():
    server = socket.create_server(("127.0.0.1", 0))
    one = socket.create_connection(server.getsockname(), 5)
    other, _ = server.accept()
    server.close()
    yield Connection(one, 5.0), Connection(other, float("inf"))
    one.close()
    other.close()


def test_records_arrive_whole(pair):
    one, other = pair
    one.send({"step": 1})
    one.send({"step": 2, "place": "a\nb"})
    found = []
    while len(found) < 2:
        found += other.receive()
    assert found == [{"step": 1}, {"step": 2, "place": "a\nb"}]
    one.socket.sendall(b'{"st')
    assert other.receive() == []
    one.socket.sendall(b'ep": 3}\n')
    assert other.receive() == [{"step": 3}]


def test_silence_is_no_end(pair):
    one, other = pair
    other.socket.settimeout(0.05)
    assert other.receive() == []
    one.socket.close()
    assert other.receive() is None
    other.send({"step": 1})  # nobody is there: no error here


@pytest.mark.parametrize("junk", [b"no json\n", b"x" * 70000])
def test_a_stranger_is_not_listened_to(junk, pair):
    one, other = pair
    one.socket.sendall(junk)
    found = []
    while found == []:
        found = other.receive()
    assert found is None


class Lost:
    """A connection of which the kernel says, after TCP_USER_TIMEOUT, that the other machine answers no more."""

    def settimeout(self, seconds):
        pass

    def setsockopt(self, *option):
        pass

    def recv(self, size):
        raise OSError(errno.ETIMEDOUT, "Connection timed out")


def test_a_machine_that_answers_no_more_is_gone():
    assert Connection(Lost(), 5.0).receive() is None
