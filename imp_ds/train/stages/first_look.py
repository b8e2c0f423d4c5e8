"""What later stages would be refused for is found before the first of them is trained, which may take days."""

from pathlib import Path

from transformers import PreTrainedConfig

from imp_ds.config import RunConfig
from imp_ds.data.class_names import with_counted_classes
from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.families.trainable import trained_parts
from imp_ds.stages import StagedRun


def check_stages(staged: StagedRun, names: list[str], out: Path) -> None:
    """Raise UserError, naming the stage, for one of `names` that lacks a model which no stage in `out` makes, or whose model,
    LoRA or patterns of what is trained do not fit each other. No weights are read."""
    for name in names:
        try:
            _check_models(name, staged.run_of(name, out), out)
            check_model(staged.planned(name, out))
        except UserError as error:
            raise UserError(f"stage {name}: {error}") from None


def check_model(run: RunConfig) -> PreTrainedConfig:
    """The configuration of a run's model. Raises UserError where its parts, LoRA and patterns do not fit each other."""
    run = with_counted_classes(run)
    family = family_of(run)
    config = family.config(run)
    family.check(run, config, 1)
    trained_parts(family.Model, config, run.train.trainable)
    return config


def _check_models(stage: str, run: RunConfig, out: Path) -> None:
    for field, folder in family_of(run).folders(run).items():
        if not Path(folder).is_dir() and out not in Path(folder).parents:
            fix = f"--set {stage}.{field}=FOLDER"
            raise UserError(f"{field} is not there", got=folder, allowed="the folder of a model", fix=fix)
