"""A run on two ranks with ZeRO 3 whose loader reads features: it starts with the loss of the media, and no rank waits for the
other, though in some steps one has videos and the other none."""

import json

import pytest
import torch

from helpers.chat_run import make_chat_run
from helpers.conversations import write_all
from helpers.processes import ROOT
from helpers.ranks import Ranks, command, end_well
from imp_ds.data.corpus import open_corpus
from imp_ds.data.loading.collation import Collator
from imp_ds.families import family_of
from imp_ds.train.start import open_batches

pytestmark = pytest.mark.distributed
TRAINED = ["uni_moe.connectors.*", "uni_moe.language_model.*"]


def test_two_ranks_train_on_features(tmp_path):
    run = make_chat_run(write_all(tmp_path), train=dict(steps=4, trainable=TRAINED))
    run = run.override(["data.messages.feature_cache_gb=1", "tasks.chat.group_by_length=5", "tasks.chat.views.messages.pack=2"])
    line = ["train", str(run.save(tmp_path / "run.json")), "--output_dir", str(tmp_path / "run")]
    ds = ["--deepspeed_config", str(ROOT / "ds_configs" / "cpu_zero3.json")]
    end_well([Ranks(command, *line, *ds, ranks=2, folder=tmp_path / "logs")], 150)
    records = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [record["tasks"]["chat"]["loss"] for record in records if record["kind"] == "train"]
    assert len(found) == 4
    assert found[0] == pytest.approx(first_loss(run), rel=1e-5)
    assert len([path for path in (tmp_path / "cache" / "features").rglob("*") if path.is_file() and path.suffix != ".lock"]) > 30


def first_loss(run) -> float:
    """Of the fresh model on the media of the first batch, one conversation a row, by one process."""
    readers, family = open_corpus(run), family_of(run)
    processor = family.processor(run, readers)
    model = family.build(family.config(run, processor), seed=0, ep_size=1)
    run = run.override(["tasks.chat.views.messages.pack=1"])
    batches = open_batches(run, readers, Collator(processor))
    with torch.no_grad():
        return float(model(batches[0]).loss)
