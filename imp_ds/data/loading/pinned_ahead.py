"""Batches copied into page-locked memory while the one before is computed with: from there a GPU fetches them by itself."""

import queue
import threading
from collections.abc import Callable

import torch

_LOOK_S = 0.5  # how often the thread looks whether it is still wanted


class PinnedAhead:
    """Takes batches in a thread of its own, since the copy of a large one takes milliseconds.

    Args:
        take: timeout in seconds -> the next batch, already copied; raises as `WorkerPool.take` does.
        ahead: batches that wait.
    """

    def __init__(self, take: Callable[[float], object], ahead: int):
        self._take, self._waiting, self._ended = take, queue.Queue(ahead), threading.Event()
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._thread = threading.Thread(target=self._run, args=(device,), daemon=True, name="pin memory")
        self._thread.start()

    def take(self, timeout_s: float | None = None):
        """The next batch, or what taking it raised."""
        try:
            batch = self._waiting.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no batch in {timeout_s:g} s") from None
        if isinstance(batch, BaseException):
            raise batch
        return batch

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def _run(self, device: int | None) -> None:
        if device is not None:
            torch.cuda.set_device(device)  # each thread has its own, and it is here that the memory is made known
        while not self._ended.is_set():
            try:
                batch = self._take(_LOOK_S)
            except TimeoutError:
                continue
            except BaseException as error:
                self._put(error)
                return
            self._put(batch)

    def _put(self, batch) -> None:
        while not self._ended.is_set():
            try:
                return self._waiting.put(batch, timeout=_LOOK_S)
            except queue.Full:
                pass
