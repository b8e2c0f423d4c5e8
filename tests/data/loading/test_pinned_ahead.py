"""The thread that copies batches ahead: order, errors, waits and its end; what it is given to take is made here."""

import threading
import time

import pytest

from imp_ds.data.loading.pinned_ahead import PinnedAhead


def counted(until: int, error: Exception):
    """take(timeout): 0, 1, ... and then the error."""
    numbers = iter(range(until))

    def take(timeout_s):
        for number in numbers:
            return number
        raise error

    return take


def test_batches_come_in_order_and_then_the_error():
    ahead = PinnedAhead(counted(20, StopIteration("no more")), ahead=3)
    assert [ahead.take(10) for _ in range(20)] == list(range(20))
    with pytest.raises(StopIteration, match="no more"):
        ahead.take(10)
    ahead.close()


def test_no_more_than_asked_wait():
    taken = []
    ahead = PinnedAhead(lambda timeout_s: taken.append(0) or len(taken), ahead=2)
    time.sleep(0.3)
    assert len(taken) == 3  # two that wait, and one in hand
    assert ahead.take(10) == 1
    ahead.close()


def test_a_wait_has_an_end_and_may_be_taken_up_again():
    there = threading.Event()

    def take(timeout_s):
        if not there.wait(timeout_s):
            raise TimeoutError
        return "batch"

    ahead = PinnedAhead(take, ahead=1)
    with pytest.raises(TimeoutError, match="no batch in 0.2 s"):
        ahead.take(0.2)
    there.set()
    assert ahead.take(10) == "batch"
    ahead.close()


@pytest.mark.parametrize("full", [False, True])
def test_closing_ends_the_thread(full):
    def empty(timeout_s):
        time.sleep(timeout_s)
        raise TimeoutError

    ahead = PinnedAhead((lambda timeout_s: 1) if full else empty, ahead=1)
    time.sleep(0.1)
    start = time.monotonic()
    ahead.close()
    assert time.monotonic() - start < 5 and not ahead._thread.is_alive()
