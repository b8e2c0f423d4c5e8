"""Folders of media: `{root}/{path}/{split}` with metadata.jsonl, .csv or .tsv, with folders of classes, with a .txt beside each
medium, with media alone, or with text files. A folder without folders of splits is the split "train" itself.

Those with metadata or classes are the layouts that `datasets` calls imagefolder, videofolder and audiofolder.
"""

from imp_ds.data.sources.columns.classes import class_names
from imp_ds.data.sources.folders.class_folders import ClassFolderReader
from imp_ds.data.sources.folders.lines import LineReader
from imp_ds.data.sources.folders.pairs import PairReader
from imp_ds.data.sources.format import Format, register_format
from imp_ds.data.sources.rows import RowReader
from imp_ds.data.sources.splits import Wanted, metadata_files


@register_format
class FolderFormat(Format):
    """Folders of media, with or without metadata, and tables."""

    kind = "folder"

    def find(self, wanted: Wanted) -> None:
        """Raises NoSplit when there is no such split, and Unreachable."""
        metadata_files(wanted)

    def open_split(self, wanted: Wanted) -> RowReader:
        """The reader of a split. Raises UserError and Unreachable."""
        folder, files = metadata_files(wanted)
        if files:
            return LineReader(wanted, files, class_names(wanted, wanted.address))
        if wanted.source.text is not None or wanted.source.label is None:
            return PairReader(wanted, folder)
        classes = [name for name in wanted.storage.names(folder, folders=True) if not name.startswith(".")]
        return ClassFolderReader(wanted, folder, classes, class_names(wanted, wanted.address, found=classes))
