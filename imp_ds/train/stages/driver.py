"""The stages of a recipe, trained one after another on the ranks that a launcher started.

A rank is a process that trains nothing itself: for each stage it starts a process that does, by the same command, so that
DeepSpeed begins afresh. Ranks meet before and after each of them. Signals go on to that process, and its exit code is the rank's.
"""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from imp_ds.parallel.launch import init_environment
from imp_ds.stages import StagedRun, model_folder
from imp_ds.train.stages.first_look import check_stages
from imp_ds.train.stages.job import Job
from imp_ds.train.stages.meeting import Meeting, open_store
from imp_ds.train.stages.relay import Relay
from imp_ds.train.stages.waves import to_train, waves


def train_stages(
    staged: StagedRun, out: Path, command: Sequence[str], *, chosen: str | None = None, resume: str | None = None,
    side_by_side: bool = False,
) -> int:  # fmt: skip
    """Train what is left of the stages, or the one that is `chosen`, in folders of `out`, and export each when it is finished.

    Args:
        command: what runs this program as it runs now; with the variables of a `Job` it does that job alone.
        resume: of `--resume`; "auto" goes on inside any stage.
        side_by_side: stages that do not need each other train at the same time, each on an equal part of the ranks.

    Returns the exit code: 0, or that of the stage that ended otherwise. Raises UserError for what cannot be trained so, and
    Preempted after a signal between two stages.
    """
    world = init_environment()
    limit_s = staged.stages[0].run.train.start_timeout_s
    meeting = Meeting(limit_s)
    try:

        def plan() -> list[list[Job]]:
            jobs, finished = to_train(staged, out, chosen, resume)
            check_stages(staged, [job.stage for job in jobs], out)
            if finished:
                print(f"finished already: {', '.join(finished)}", flush=True)
            return waves(staged, jobs, world, side_by_side)

        planned = [[Job(*job) for job in wave] for wave in meeting.share("the plan", plan, limit_s)]
        with Relay() as relay:
            for wave in planned:
                if code := _Wave(staged, out, command, meeting, relay, wave).run():
                    return code
        if meeting.rank == 0:
            print(_written(staged, out, chosen), flush=True)
        return 0
    finally:
        meeting.leave()


class _Wave:
    """Stages that are trained at the same time: one on all ranks, or several on an equal part of the ranks each."""

    def __init__(
        self, staged: StagedRun, out: Path, command: Sequence[str], meeting: Meeting, relay: Relay, jobs: list[Job]
    ):  # fmt: skip
        self.command, self.meeting, self.relay = command, meeting, relay
        self.size = meeting.world // len(jobs)  # ranks of a stage
        self.part, self.rank = divmod(meeting.rank, self.size)
        self.job = jobs[self.part]  # of this rank
        self.name = f"stage {'+'.join(job.stage for job in jobs)}"
        self.limit_s = max(staged.stage(job.stage).run.train.hang_timeout_s for job in jobs)
        if meeting.rank == 0:
            each = "" if len(jobs) == 1 else f", each on {self.size} of {meeting.world} ranks"
            folders = ", ".join(f"{job.stage} in {out / job.stage}" for job in jobs)
            print(f"training {'stage' if len(jobs) == 1 else 'stages'} {folders}{each}", flush=True)

    def run(self) -> int:
        """The exit code, 0 when all stages are trained and exported. All ranks call it."""
        with nullcontext(open_store(self.meeting.address())) if self.rank == 0 else nullcontext() as store:
            place = None if store is None else [store.host, store.port]
            host, port = self.meeting.gather(f"{self.name} begins", place, self.limit_s)[self.part * self.size]
            variables = {
                "RANK": str(self.rank), "WORLD_SIZE": str(self.size), "MASTER_ADDR": host, "MASTER_PORT": str(port),
                "LOCAL_RANK": os.environ["LOCAL_RANK"],
                "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there already: nobody of them is to open one
            }  # fmt: skip
            return self._agree(self.relay.run(self.command, self.job.variables() | variables))

    def _agree(self, code: int) -> int:
        """The exit code of the first rank that has one other than 0. One that has one itself does not wait for the others."""
        name = f"{self.name} ends"
        if code:
            self.meeting.tell(name, [code, None])
            return code
        found = self.meeting.gather(name, [0, self.relay.received], self.limit_s)
        if code := next((code for code, _ in found if code), 0):
            return code
        if (signal := next((signal for _, signal in found if signal is not None), None)) is not None:
            raise self.relay.stopped(signal)
        return 0


def _written(staged: StagedRun, out: Path, chosen: str | None) -> str:
    names = [stage.name for stage in staged.stages] if chosen is None else [chosen]
    return f"done: {', '.join(names)}; the model of the last is {model_folder(out, names[-1])}"
