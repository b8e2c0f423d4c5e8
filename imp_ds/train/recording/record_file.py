"""Files that a run only adds records to: a disk without room delays them, and never ends the run."""

import os
import sys
from collections import deque
from pathlib import Path

_KEPT = 64 * 2**20  # bytes of records that wait for room; what comes after them is lost
_AT_ONCE = 1 << 16  # bytes of records that are written, and taken back, together


class RecordFile:
    """Appends complete records to a file, which is made with the first one.

    A write that fails is taken back, so that no part of a record stays in the file, and its records wait in memory for the next
    `flush`. This is logged once for all files of the process, on standard error, and once when all of them are written again.
    """

    _waiting: set[Path] = set()  # the files whose records wait, of the whole process

    def __init__(self, path: str | Path):
        self.path, self.lost = Path(path), 0
        self._records: deque[bytes] = deque()
        self._bytes = 0
        self._file: int | None = None
        self._size = 0  # of the file, as far as its records are complete

    def add(self, record: bytes) -> None:
        """A record to be written with the next `flush`."""
        if self._bytes + len(record) > _KEPT:
            self.lost += 1
            return
        self._records.append(record)
        self._bytes += len(record)

    def flush(self) -> bool:
        """Write the records that wait; whether all are in the file. Never raises for a disk."""
        try:
            self._open()
            while self._records:
                self._write(self._next())
        except OSError as error:
            self._say_waiting(error)
            return False
        self._say_written()
        return True

    def close(self) -> None:
        """The last try: records that find no room now are lost."""
        if not self.flush():
            print(f"{self.path}: {len(self._records) + self.lost} records are lost", file=sys.stderr, flush=True)
            self._waiting.discard(self.path)
            self._records.clear()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> None:
        if self._file is None and self._records:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._size = os.fstat(self._file).st_size

    def _next(self) -> list[bytes]:
        """The first records that wait, together of some size."""
        found, size = [], 0
        for record in self._records:
            found.append(record)
            size += len(record)
            if size >= _AT_ONCE:
                break
        return found

    def _write(self, records: list[bytes]) -> None:
        content, done = memoryview(b"".join(records)), 0
        try:
            while done < len(content):  # a disk that fills up takes a part first
                done += os.write(self._file, content[done:])
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(content)
        for record in records:
            self._records.popleft()
            self._bytes -= len(record)

    def _say_waiting(self, error: OSError) -> None:
        if not self._waiting:
            print(
                f"the records of the run cannot be written ({self.path}: {error.strerror or error}): training goes on, and they "
                "wait in memory until they can", file=sys.stderr, flush=True,
            )  # fmt: skip
        self._waiting.add(self.path)

    def _say_written(self) -> None:
        if self.path not in self._waiting:
            return
        self._waiting.discard(self.path)
        if self.lost:
            print(f"{self.path}: {self.lost} records found no room and are lost", file=sys.stderr, flush=True)
            self.lost = 0
        if not self._waiting:
            print("the records of the run are written again", file=sys.stderr, flush=True)
