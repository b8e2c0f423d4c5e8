"""Ranks that meet, of which the last one comes late, and one that does not come again."""

import os
import time

from imp_ds.errors import UserError
from imp_ds.train.stages.meeting import Meeting


def meet(late_s: float, limit_s: float) -> None:
    meeting = Meeting(30)
    print("shared", meeting.share("plan", lambda: {"of rank": meeting.rank}, 30), flush=True)
    last = meeting.rank == meeting.world - 1
    time.sleep(late_s if last else 0)
    print("gathered", meeting.gather("first", [meeting.rank, None], 30), flush=True)
    try:
        meeting.share("broken", broken, 30)
    except UserError as error:
        print(f"{error.shared} {error}", flush=True)
    if not last:
        start = time.monotonic()
        try:
            meeting.gather("second", None, limit_s)
        except UserError as error:
            print(f"{error}\nafter {time.monotonic() - start:.1f} s", flush=True)
    meeting.leave()


def broken() -> None:
    raise UserError("it cannot be planned", got=os.environ["RANK"])
