"""The shape of the house, counted: sizes of files, rooms that are not crowded, and folders of tests that mirror the rooms."""

import re
import statistics
from collections import Counter

from helpers.source_tree import MODULES, PACKAGE, ROOT, imports_of, is_package, text_of

FILES = {module: len(text_of(path).splitlines()) for module, path in MODULES.items() if not is_package(module)}
TESTS = ROOT / "tests"
# folders of tests of no room alone: of the whole project; transformers' own tests, and what the processors do together
WHOLE = {"distributed", "docs", "gpu", "helpers", "launch", "models/common", "models/processing"}
# modules that are called by name
NAMED = {"imp_ds.__main__", "imp_ds.data.sources.folder"}


def test_no_file_is_long():
    assert max(FILES.values()) <= 400
    assert 90 <= statistics.median(FILES.values()) <= 200


def test_no_room_is_crowded():
    rooms = Counter(module.rpartition(".")[0] for module in FILES)
    assert {room: number for room, number in rooms.items() if number > 15} == {}


def test_what_is_short_and_has_one_caller_stands_in_it():
    """But for parts of a modality, each of which imports something heavy of its own, and objectives, which have a file each."""
    callers = Counter(name for module in MODULES for name in imports_of(module))
    short = {module for module, lines in FILES.items() if lines < 40 and callers[module] < 2}
    assert {module for module in short - NAMED if not module.startswith(("imp_ds.modalities.", "imp_ds.objectives."))} == set()


def test_folders_of_tests_mirror_the_rooms():
    """Those of models/imp lie in tests/models itself."""
    folders = {path.parent.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")} - WHOLE
    rooms = {path.parent.relative_to(PACKAGE).as_posix() for path in MODULES.values()}
    assert {folder for folder in folders if not {folder, folder.replace("models/", "models/imp/")} & rooms} == set()


def test_tests_take_nothing_from_test_files():
    taken = re.compile(r"^ *(?:from|import) test_", re.MULTILINE)
    assert [str(path) for path in TESTS.rglob("*.py") if taken.search(text_of(path))] == []
