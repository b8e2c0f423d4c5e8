"""Feed damaged shards and tables to the readers of sources: python scripts/fuzz_sources.py [--kinds tar conversations ...]

Each sample is a source whose file is damaged; its indexes are built and its rows are read and decoded, in a child process, which
may end, hang or grow; the sample that did so is named, and kept under --found. A sample passes when its rows are read or left out
as bad, or the source is refused by a UserError, within --seconds and --memory. With a damaged index of a shard (the kind "index")
the rows must be those of a complete one. 30,000 of a kind take two to four minutes on one core.
Each sample is a pure function of its kind, the seed and its number. The last line gives what was found; the exit code is 1 for an
escape.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

from fuzz_runner import Kind, main  # noqa: E402

from helpers.damaged_sources import (  # noqa: E402
    conversation_files,
    index_files,
    line_files,
    mutated_source,
    parquet_files,
    read_source,
    table_files,
    tar_files,
)

_FILES = {
    "tar": tar_files, "parquet": parquet_files, "lines": line_files, "tables": table_files, "conversations": conversation_files,
    "index": index_files,
}  # fmt: skip
KINDS = {kind: Kind(files, read_source, mutated_source) for kind, files in _FILES.items()}

if __name__ == "__main__":
    main(__file__, __doc__, KINDS)
