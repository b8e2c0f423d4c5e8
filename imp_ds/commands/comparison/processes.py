"""Jobs as processes, several side by side: what they print goes to their logs, how far they are to a callback."""

import os
import signal
import subprocess
import time
from collections.abc import Callable

from imp_ds.commands.comparison.job import Job
from imp_ds.errors import UserError
from imp_ds.parallel.launch import NAMES

_LOOK_S = 0.5  # from one look at the processes to the next
_STOP_S = 60.0  # in which a run that is asked to stop writes a checkpoint
_SHOWN = 15  # last lines of a log in an error


class _Running:
    """A process of a job. Its threads are its share of the cores, so that neighbours do not stand in each other's way."""

    def __init__(self, job: Job, command: list[str], threads: int):
        self.job, self.command, self.since = job, command, time.monotonic()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if name not in NAMES and not name.startswith("SLURM_")}
        environment = kept | {"OMP_NUM_THREADS": str(threads)}
        with job.log.open("a", encoding="utf-8") as log:
            # a session of its own: a Ctrl-C is for us, and we ask them to stop in a way that keeps what they have
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def check(self) -> None:
        """Raise UserError when it ended badly, or well and without having done what it was to do."""
        code = self.process.returncode
        if code == 0 and self.job.command() != self.command:
            return
        last = self.job.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN:]
        found = [f"exit code {code} of {' '.join(self.command)}", *last]
        raise UserError(
            f"the run {self.job.name} failed", got="\n           ".join(found),
            fix=f"see {self.job.log}; the same command again goes on with what is done",
        )  # fmt: skip


def run_jobs(
    jobs: list[Job], parallel: int, *, progress: Callable[[str, int, int], None], log: Callable[[str], None] = print
) -> None:
    """Bring all jobs to their ends, at most `parallel` at a time; those that are done are not touched.

    progress: called with ("training", steps done, steps in all). log: called with a line when a process has ended.

    Raises UserError when one fails; the others are then stopped, after a checkpoint.
    """
    waiting, running = [job for job in jobs if job.command() is not None], []
    steps, threads = {job.name: job.steps for job in jobs}, max(1, len(os.sched_getaffinity(0)) // parallel)
    reported, kept = None, signal.signal(signal.SIGTERM, _leave)
    if done := len(jobs) - len(waiting):
        log(f"{done} of {len(jobs)} runs are done already")
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                running.append(_Running(job, job.command(), threads))
            time.sleep(_LOOK_S)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                one.check()
                log(f"{one.job.name}: {one.command[3]} took {time.monotonic() - one.since:.0f} s")
                if one.job.command() is not None:
                    waiting.insert(0, one.job)
            open_steps = {one.job.name: steps[one.job.name] - one.job.steps_done() for one in running}
            open_steps |= {job.name: steps[job.name] - job.steps_done() for job in waiting}
            done = sum(steps.values()) - sum(open_steps.values())
            if done != reported:
                progress("training", done, sum(steps.values()))
            reported = done
    finally:
        _stop(running)
        signal.signal(signal.SIGTERM, kept)


def _leave(*_) -> None:
    """Who asks us to stop means our processes too."""
    raise SystemExit(128 + signal.SIGTERM)


def _stop(running: list[_Running]) -> None:
    for one in running:
        one.process.terminate()
    deadline = time.monotonic() + _STOP_S
    for one in running:
        try:
            one.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
