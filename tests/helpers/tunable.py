"""A small exported model of the digits corpus, with random weights, for whoever tunes one."""

from pathlib import Path

import torch

from imp_ds import ImpForPreTraining
from imp_ds.config import RunConfig
from imp_ds.data.corpus import open_corpus
from imp_ds.families.imp.processor import build_processor
from imp_ds.models.initialization import initialize_seeded
from imp_ds.recipes import get_recipe


def digits_run(corpus: Path, **model) -> RunConfig:
    """`digits_debug` on a corpus, with changes of the model."""
    run = get_recipe("digits_debug").override([f"data.root={corpus}", "data.workers=0", "data.vocab_size=300"])
    run.model = run.model.model_copy(update=model)
    return run


def export_untrained(run: RunConfig, folder: Path, seed: int = 0) -> Path:
    """What `export` would write of the run at its start."""
    readers = open_corpus(run)
    processor = build_processor(run, readers)
    config = run.model.to_config(len(processor.tokenizer), run.tasks, processor.tokenizer)
    torch.manual_seed(seed)
    model = ImpForPreTraining(config)
    initialize_seeded(model, seed, config.initializer_range)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    run.save(folder)
    return folder
