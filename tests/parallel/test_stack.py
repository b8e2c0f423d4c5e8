"""Where another thread stands: its lines, what it waits for, and nothing of it kept alive."""

import threading
import time
import weakref

from torch.utils.file_baton import FileBaton

from imp_ds.parallel.stack import look_at


class Held:
    pass


def _stand(ready: threading.Event, go_on: threading.Event, references: list) -> None:
    held = Held()
    references.append(weakref.ref(held))
    ready.set()
    go_on.wait(10)


def _thread(function, *arguments) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


def test_the_lines_are_those_of_the_thread_innermost_first():
    ready, go_on, references = threading.Event(), threading.Event(), []
    thread = _thread(_stand, ready, go_on, references)
    assert ready.wait(10)
    stack, waits = look_at(thread.ident)
    go_on.set()
    thread.join(10)
    assert waits is None
    functions = [place.function for place in stack]
    assert functions[-1] == "_bootstrap" and "_stand" in functions and functions.index("_stand") < functions.index("run")
    place = stack[functions.index("_stand")]
    assert place.path == __file__ and str(place) == f"test_stack.py:{_stand.__code__.co_firstlineno + 4} in _stand"


def test_variables_of_the_thread_end_with_its_function():
    ready, go_on, references = threading.Event(), threading.Event(), []
    thread = _thread(_stand, ready, go_on, references)
    assert ready.wait(10)
    kept = look_at(thread.ident)
    assert references[0]() is not None and kept[0]
    go_on.set()
    thread.join(10)
    assert references[0]() is None  # with a frame of it, it would live as long as `kept`


def test_a_lock_that_is_waited_for_is_named(tmp_path):
    lock = tmp_path / "lock"
    lock.touch()
    thread = _thread(FileBaton(str(lock)).wait)
    time.sleep(0.05)
    found = look_at(thread.ident)[1]
    lock.unlink()
    thread.join(10)
    assert str(lock) in found and "delete it" in found
    assert look_at(threading.get_ident())[1] is None


def test_a_thread_that_is_gone_has_no_stack():
    thread = _thread(lambda: None)
    thread.join(10)
    assert look_at(thread.ident) == ([], None)
