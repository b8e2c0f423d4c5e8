"""What is not scored since its sources lack a split is reported: by `eval`, at the start of training and at its end."""

import json

import numpy as np
import pytest
from PIL import Image

import imp_ds.families.imp.evaluation  # noqa: F401  registers what scores heads
from imp_ds.commands.check.command import examine
from imp_ds.commands.check.request import CheckRequest
from imp_ds.commands.doctor.recipe import examine_run
from imp_ds.config import DataSettings, RunConfig, TrainSettings
from imp_ds.errors import UserError
from imp_ds.evaluation.missing_splits import check_evaluations, final_split, unscored, unscored_note
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification, Contrastive
from imp_ds.planning.check_plan import NoPlan
from imp_ds.tasks import Source, Task
from imp_ds.train.recording.monitor import Monitor

VIEWS = Views(vision=VisionView(height=16, width=16))


def write(root, path: str, *splits: str) -> Source:
    for split in splits:
        folder = root / path / split
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "0.png")
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "label": 0, "text": "a square"}) + "\n")
    return Source(path=path, vision="file_name", label="label")


def make_run(root, sources: dict[str, Source], evaluated: Source | None = None) -> RunConfig:
    """A task with a head for each source, one without a head, and an evaluation where a source is given."""
    head = [Classification(modality="vision", num_classes=2)]
    tasks = [Task(name=name, source=source, views=VIEWS, objectives=head, batch_size=2) for name, source in sources.items()]
    views = VIEWS.model_copy(update={"text": TextView(length=4)})
    captioned = tasks[0].source.model_copy(update={"text": "text"})
    pairs = [Contrastive(pairs=[("vision", "text")])]
    tasks.append(Task(name="pairs", source=captioned, views=views, objectives=pairs, batch_size=2))
    found = [] if evaluated is None else [Evaluation(name="scenes", modality="vision", source=evaluated, views=VIEWS)]
    data = DataSettings(root=str(root))
    model = ModelSettings(size="tiny", vision_patch=(1, 8, 8), vision_max=(1, 16, 16))
    return RunConfig(name="x", model=model, data=data, tasks=tasks, evaluations=found, train=TrainSettings(steps=1))


def test_tasks_with_heads_whose_sources_lack_the_split_are_named(tmp_path):
    full, some = write(tmp_path, "full", "train", "validation", "test"), write(tmp_path, "some", "train")
    run = make_run(tmp_path, {"photos": full, "sounds": some, "films": some})
    assert unscored(run, "test") == ["sounds", "films"] and unscored(run, "train") == []
    assert unscored(run, "test", ["photos", "sounds", "pairs"]) == ["sounds"]
    assert unscored_note(["sounds", "films"], "test") == "not scored on test: sounds, films (their sources have no test split)"
    assert unscored_note(["sounds"], "test") == "not scored on test: sounds (its source has no test split)"
    assert unscored_note([], "test") is None


def test_the_final_scores_are_of_the_test_split_where_all_that_was_scored_has_it(tmp_path):
    full, some = write(tmp_path, "full", "train", "validation", "test"), write(tmp_path, "some", "train")
    most = write(tmp_path, "most", "train", "validation")
    assert final_split(make_run(tmp_path, {"photos": full}, full)) == ("test", None)
    line = "not scored on test: sounds (its source has no test split)"
    assert final_split(make_run(tmp_path, {"photos": full, "sounds": some}, full)) == ("test", line)
    behind = "; the final scores are those of validation"
    assert final_split(make_run(tmp_path, {"photos": full, "sounds": most}, full)) == ("validation", line + behind)
    line = "not scored on test: scenes (its source has no test split)"
    assert final_split(make_run(tmp_path, {"photos": full}, most)) == ("validation", line + behind)


def test_an_evaluation_without_the_split_that_training_measures_is_refused_by_name(tmp_path):
    full, most = write(tmp_path, "full", "train", "validation"), write(tmp_path, "most", "train", "test")
    check_evaluations(make_run(tmp_path, {"photos": full}, full), "validation")
    run = make_run(tmp_path, {"photos": full}, most)
    with pytest.raises(UserError, match="evaluation scenes: its source has no split validation") as refused:
        check_evaluations(run, "validation")
    assert "got:     train, test" in str(refused.value)
    nowhere = Source(path="nowhere", vision="file_name")
    check_evaluations(make_run(tmp_path, {"photos": full}, nowhere), "test")  # its reader says what is not there
    assert "evaluation scenes" in examine_run(run)[0].found
    with pytest.raises(UserError, match="evaluation scenes"):
        examine(CheckRequest(run, NoPlan(1, 1, [], "none")), lambda *_: None)


def test_an_evaluation_of_nothing_says_so(tmp_path, capsys):
    run = make_run(tmp_path, {"photos": write(tmp_path, "some", "train")})
    monitor = Monitor(tmp_path / "out", run, enabled=True, total_steps=2)
    monitor.record_evaluation(2, [], {}, split="test")
    monitor.close()
    assert capsys.readouterr().out == "step 2, test: nothing was evaluated: no evaluation and no head to score\n"
