"""One process at a time writes into a run's folder: a lock that ends with the process that holds it, however it ends."""

import errno
import fcntl
import os
import socket
import sys
import time
from pathlib import Path

from imp_ds.errors import UserError

FILE = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class RunLock:
    """The lock on the folder of a run; taken by rank 0, and held until its process ends.

    It is a lock of POSIX: the processes of a loader do not inherit it, and it is known across machines that share the folder
    by NFS. Such a lock is lost when its process closes any descriptor of the file: nothing else opens it.

    Raises UserError, which names the holder, where another process has it, and OSError where the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self.path = Path(folder) / FILE
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                print(f"{folder} is on a file system without locks: see that no other run uses it", file=sys.stderr, flush=True)
                return
            holder = os.pread(self._file, 200, 0).decode("utf-8", "replace").strip()
            os.close(self._file)
            raise UserError(
                "another process is writing into the output folder", got=f"{folder}, held by {holder or 'a process'}",
                fix="wait for it, end it, or take another --output_dir",
            ) from None
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
