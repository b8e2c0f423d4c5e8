"""The files that rows name. A corpus may come from anybody, so a row may name only files below its own folder: no absolute
path, no "..", no address, no link that leads out. What the user names in source.media_root may be named besides: by absolute
paths, by links and by steps up.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath, PureWindowsPath

from imp_ds.data.files.storage import Storage, local_path
from imp_ds.modalities.media import BadSample, Media, shown

_ALLOW = "source.media_root names folders elsewhere that may be read"


class NamedFiles:
    """The files below one folder.

    Args:
        folder: its address.
        stamp: of the file that names them: when it changes, copies of remote ones are made anew.
        roots: folders whose files may be named too, wherever they are.
    """

    def __init__(self, storage: Storage, folder: str, stamp: str, roots: Sequence[str] = ()):
        self.storage, self.folder, self.stamp = storage, folder, stamp
        self.local = local_path(folder)
        self._real = None if self.local is None else os.path.realpath(self.local)
        self._roots = [os.path.realpath(root) for root in roots]

    def media(self, name, where: str) -> Media:
        """The file of that name. Raises BadSample("wrong column"), ("unsafe name") and ("missing file")."""
        if not self._roots or self.local is None:
            check_name(name, where)
        elif not isinstance(name, str) or not name or "\0" in name or "://" in name:
            raise BadSample("wrong column", f"{where} is not a file name: {shown(name)}")
        if self.local is None:
            address = f"{self.folder}/{name}"
            return Media(address, read=partial(self.storage.read, address, self.stamp))
        path = self.local / name
        try:
            real = os.path.realpath(path, strict=True)
        except (OSError, ValueError) as error:  # not there, a link to itself, or longer than names may be
            raise BadSample("missing file", str(path)) from error
        if not any(os.path.commonpath([real, root]) == root for root in (self._real, *self._roots)):
            raise BadSample("unsafe name", f"{where}: {path} leads to {real}, out of its folder; {_ALLOW}")
        return Media(str(path), path=path)


def check_name(name, where: str) -> None:
    """Raise BadSample unless it is a relative path without steps up, on any system: hence no backslashes and no drives."""
    if not isinstance(name, str) or not name:
        raise BadSample("wrong column", f"{where} is not a file name: {shown(name)}")
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive
    if outside or "://" in name or "\\" in name or "\0" in name:
        raise BadSample("unsafe name", f"{where}: {shown(name)} is not below its folder; {_ALLOW}")
