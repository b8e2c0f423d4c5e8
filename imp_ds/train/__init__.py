"""Training: the schedule of tasks, DeepSpeed's configuration, the plan of a run, the engine, the loop and its records.

The package can be called: `from imp_ds import train`, `train(run, output_dir, ...)` is `imp_ds.train.trainer.train`.
"""

import sys
import types

from imp_ds.errors import UserError
from imp_ds.parallel.launcher_watch import watch_launcher
from imp_ds.stages import StagedRun


class _Callable(types.ModuleType):
    def __call__(self, *args, **kwargs):
        """`imp_ds.train.trainer.train`, which is loaded now: DeepSpeed is not needed before. Raises UserError for a StagedRun."""
        if args and isinstance(args[0], StagedRun):
            stage = args[0].stages[0].name
            fix = f'imp_ds train RECIPE; or one of them: train(staged.run_of("{stage}", FOLDER), "FOLDER/{stage}")'
            raise UserError("several stages are trained by the command, in processes of their own", got=args[0].name, fix=fix)
        watch_launcher()
        from imp_ds.train.trainer import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
