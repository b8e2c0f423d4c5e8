"""Commands of recipes of several stages, for ranks of a test: the processes of stages are forks of a rank, which has imported all
that they would import for seconds. The launcher's own are tested beside it."""

import os
import signal
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

from helpers.ranks import command
from imp_ds.train.preemption import SIGNALS
from imp_ds.train.stages import relay

_OPTIONS = 4  # python -u -m imp_ds


class Fork:
    """As far as a rank needs it what `subprocess.Popen` is."""

    def __init__(self, line: list[str], env: dict[str, str]):
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(line, env)

    def _run(self, line: list[str], env: dict[str, str]) -> None:
        code = 1
        try:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            os.environ.clear()
            os.environ.update(env)
            command(*line[_OPTIONS:])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def staged(*arguments: str) -> None:
    """`imp_ds ARGUMENTS`."""
    relay.subprocess = SimpleNamespace(Popen=Fork)
    command(*arguments)


def ask(models: list[str], question: str) -> None:
    """`imp_ds chat` of each model."""
    from imp_ds.commands.chat_command import Sampling, chat

    for model in models:
        (answer,) = chat(Path(model), question, [], Sampling(max_new_tokens=3))
        print(f"{model} answers {answer!r}", flush=True)
