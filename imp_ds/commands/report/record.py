"""What the folder of a run holds, as far as it can be read: a run may still be going, may have been killed, or be damaged."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from imp_ds.config import FILE_NAME, RunConfig
from imp_ds.errors import UserError
from imp_ds.evaluation.metric import Metric, read_metric
from imp_ds.json_files import parse_json, read_json
from imp_ds.train import checkpoint
from imp_ds.train.recording.monitor import HISTORY, check_line
from imp_ds.train.recording.rejections import FILE as REJECTED
from imp_ds.train.run_folder import ANSWERS, RESULTS, RESULTS_UNITS, load_run

_ANSWERS = 6  # of each evaluation


class RunRecord:
    """`damaged`: of each file how many lines, or parts, cannot be read; they are left out.

    run: the RunConfig. train, evaluations: lines of metrics.jsonl by their kind. results: the final scores, [] of a run that is
    not through. answers: {evaluation: [line]}, the first of each, and `asked` how many there are. rejected: the lines.
    state: of the newest checkpoint. parameters: in the model, 0 where there is no checkpoint.

    Raises UserError where the folder's configuration cannot be had.
    """

    def __init__(self, folder: Path):
        self.folder, self.damaged = folder, Counter()
        self.run: RunConfig = load_run(folder)
        lines = list(self._lines(HISTORY, check_line))
        self.train = [line for line in lines if line["kind"] == "train"]
        self.evaluations = [line for line in lines if line["kind"] == "evaluation"]
        self.results = self._results()
        self.asked, self.answers = Counter(), {}
        for line in self._lines(ANSWERS, lambda line: (line["evaluation"], line["prompt"], line["answer"])):
            name = str(line["evaluation"])
            self.asked[name] += 1
            if self.asked[name] <= _ANSWERS:
                self.answers.setdefault(name, []).append(line)
        self.rejected = list(self._lines(REJECTED, lambda line: (line["source"], line["key"], line["reason"], line["detail"])))
        self.state, self.parameters = self._newest()

    @property
    def step(self) -> int:
        """The last step that is known of."""
        return max([0, self.state.get("step", 0), *(line["step"] for line in self.train + self.evaluations)])

    @property
    def is_finished(self) -> bool:
        return bool(self.results)

    def value(self, name: str) -> float | None:
        """Of a final result."""
        return next((metric.value for metric in self.results if metric.name == name), None)

    def _lines(self, name: str, check: Callable[[dict], object]) -> Iterator[dict]:
        path = self.folder / name
        if not path.is_file():
            return
        with path.open("rb") as file:
            for content in file:
                try:
                    line = parse_json(content, name, dict)
                    check(line)
                except (ValueError, LookupError, TypeError, AttributeError):  # a UserError is a ValueError
                    self.damaged[name] += 1
                    continue
                yield line

    def _results(self) -> list[Metric]:
        if not (self.folder / RESULTS).is_file():
            return []
        try:
            found, facts = (read_json(self.folder / name, dict) for name in (RESULTS, RESULTS_UNITS))
            return [read_metric(name, float(value), facts[name]) for name, value in found.items()]
        except (ValueError, LookupError, TypeError):
            self.damaged[RESULTS] += 1
            return []

    def _newest(self) -> tuple[dict, int]:
        """State and number of parameters of the newest checkpoint whose lists can be read; its weights are not looked at."""
        for step in reversed(checkpoint.steps(self.folder)):
            folder = self.folder / checkpoint.FOLDER / checkpoint.folder_name(step)
            try:
                return checkpoint.summary(folder)
            except (UserError, KeyError, TypeError):
                self.damaged[str(folder.relative_to(self.folder))] += 1
        return {}, 0


def records(folder: Path) -> list[RunRecord]:
    """The run in a folder, or of a staged run all stages that have begun, in the order in which they did.

    Raises UserError where there is none.
    """
    if (folder / FILE_NAME).is_file() or checkpoint.steps(folder):
        return [RunRecord(folder)]
    stages = [path.parent for path in folder.glob(f"*/{FILE_NAME}") if (path.parent / HISTORY).exists()]
    if not stages:
        allowed = "the --output_dir of imp_ds train, for example runs/digits"
        raise UserError("this is not the folder of a run", got=folder, allowed=allowed)
    return [RunRecord(stage) for stage in sorted(stages, key=lambda stage: ((stage / FILE_NAME).stat().st_mtime, stage.name))]
