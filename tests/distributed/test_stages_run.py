"""The stages of `talk_debug` on two ranks, the specialists side by side: a whole run, one that is stopped in a stage and goes on
bit for bit, what becomes of a specialist in the mixture, answers of every stage's model, and a signal to a launcher."""

import base64
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from staged_command import ask, staged

from helpers.processes import ROOT, environment, free_port
from helpers.ranks import Ranks, command, end_well
from imp_ds.models.uni_moe import UniMoeConfig
from imp_ds.train import checkpoint

pytestmark = pytest.mark.distributed
STAGES = ["language", "align", "image", "video", "speech", "moe"]
MATRICES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def line(corpus: Path, out: Path, *more: str) -> list[str]:
    """Of `imp_ds train`: without evaluations, and with a stage that is long enough to be met by a signal."""
    changes = [f"*.data.root={corpus}", "*.evaluations=[]", "image.train.steps=40"]
    return ["train", "talk_debug", *(part for one in changes for part in ("--set", one)), "--output_dir", str(out), *more]


@pytest.fixture(scope="module")
def folder(talk_corpus, tmp_path_factory) -> Path:
    """`whole`, and `stopped`, which got a signal in the stage image and was gone on with."""
    folder = tmp_path_factory.mktemp("stages")
    whole = Ranks(staged, *line(talk_corpus, folder / "whole", "--side_by_side"), ranks=2, folder=folder / "log_whole")
    words = line(talk_corpus, folder / "stopped", "--side_by_side", "--resume", "auto")
    stopped = Ranks(staged, *words, ranks=2, folder=folder / "log_stopped")
    stopped.await_output("step 4/40", 120)
    stopped.send(signal.SIGTERM)
    ended = stopped.wait(60)
    assert ended.codes == [75, 75] and "--resume auto (exit code 75)" in ended.outputs[0], str(ended)
    end_well([whole, Ranks(staged, *words, ranks=2, folder=folder / "log_resumed")], 120)
    return folder


def printed(folder: Path, log: str) -> str:
    return (folder / log / "rank0.log").read_text()


def test_every_stage_is_trained_and_exported_in_order(folder):
    text, out = printed(folder, "log_whole"), folder / "whole"
    lines = [
        f"training stage language in {out / 'language'}\n",
        f"training stage align in {out / 'align'}\n",
        f"training stages image in {out / 'image'}, video in {out / 'video'}, each on 1 of 2 ranks\n",
        f"training stage speech in {out / 'speech'}\n",
        f"training stage moe in {out / 'moe'}\n",
    ]
    places = [text.index(line) for line in lines]
    assert places == sorted(places)
    assert f"done: {', '.join(STAGES)}; the model of the last is {folder / 'whole' / 'moe' / 'model'}" in text
    assert sorted(path.name for path in (folder / "whole").iterdir()) == sorted(STAGES)


def test_a_stopped_stage_goes_on_bit_for_bit(folder):
    assert "stopped after step" in printed(folder, "log_stopped")
    text = printed(folder, "log_resumed")
    assert "finished already: language, align" in text and "training stage language" not in text
    assert f"resuming from {folder / 'stopped' / 'image' / 'checkpoints'}" in text
    for stage in STAGES:
        one, other = (load_file(folder / run / stage / "model" / "model.safetensors") for run in ("whole", "stopped"))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one), stage


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def test_an_expert_of_the_mixture_began_as_what_its_specialist_has_learned(folder):
    """What is frozen in the stage moe is as it was loaded: by hash the merged feed-forwards of the stages before."""
    whole = folder / "whole"
    models = {slot: load_file(whole / stage / "model" / "model.safetensors") for slot, stage in slots().items()}
    reader = checkpoint.Reader(whole / "moe" / "checkpoints" / "step_00000006")
    for layer in (0, 1):
        for ours, theirs in MATRICES.items():
            name = f"uni_moe.language_model.model.layers.{layer}.mlp.moe.experts.{ours}"
            shape = reader.index[name]["shape"]
            stack = reader.read(name, 0, math.prod(shape)).view(shape)
            own = [model[f"language_model.model.layers.{layer}.mlp.{theirs}.weight"] for model in models.values()]
            assert [digest(expert.t()) for expert in stack] == [digest(weight) for weight in own]
            assert len({digest(weight) for weight in own}) == 4  # the specialists have learned something
    sources = UniMoeConfig.from_pretrained(whole / "moe" / "model").expert_sources
    for slot, stage in slots().items():
        file = whole / stage / "model" / "model.safetensors"
        assert sources[slot]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert sources[slot]["source"] == str(file.parent) and sources[slot]["step"] == {"image": 40}.get(stage, 6)


def slots() -> dict[str, str]:
    return {"base": "language", "image": "image", "video": "video", "speech": "speech"}


def test_a_source_that_was_changed_is_refused_by_the_name_of_its_slot(folder, tmp_path):
    shutil.copytree(folder / "whole" / "speech" / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    run = folder / "whole" / "moe"
    experts = {slot: str(folder / "whole" / stage / "model") for slot, stage in slots().items()}
    changed = json.dumps(experts | {"speech": str(tmp_path / "model")})
    more = ["--set", f"model.experts={changed}", "--set", "train.steps=8", "--resume", "auto", "--allow_changes"]
    words = ["train", str(run / "run_config.json"), "--output_dir", str(run), *more]
    ended = Ranks(command, *words, ranks=1, folder=tmp_path / "log").wait(60)
    assert ended.codes == [2] and "error: model.experts.speech: the model that the run's experts were" in str(ended), str(ended)


def test_every_model_answers(folder):
    models = [str(folder / "whole" / stage / "model") for stage in STAGES]
    end_well([Ranks(ask, models, "what is one plus two?", ranks=1, folder=folder / "log_asked")], 60)
    assert all(f"{model} answers " in printed(folder, "log_asked") for model in models)


def test_a_stage_before_its_turn_is_refused_on_all_ranks(folder, talk_corpus, tmp_path):
    words = line(talk_corpus, tmp_path / "new", "--stage", "moe")
    ended = Ranks(staged, *words, ranks=2, folder=tmp_path / "log").wait(60)
    assert ended.codes == [2, 2] and ended.outputs[1] == "", str(ended)
    assert "error: stage moe starts from the model of stage language, which is not finished" in ended.outputs[0]
    assert not (tmp_path / "new").exists()


def test_a_signal_to_the_launcher_reaches_the_stage(talk_corpus, tmp_path):
    """The program of deepspeed that starts the ranks of a machine, and one rank: what each process imports takes seconds. It ends
    with 1 after a signal, whatever its ranks end with."""
    words = line(talk_corpus, tmp_path / "run", "--stage", "language", "--set", "language.train.steps=1000000")
    world = "--world_info=" + base64.urlsafe_b64encode(b'{"localhost": [0]}').decode()
    launcher = [sys.executable, "-m", "deepspeed.launcher.launch", world, f"--master_port={free_port()}"]
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(
            [*launcher, "--module", "imp_ds", *words], env=environment(), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            await_text(tmp_path / "log", "step 3/1000000", started)
            family = psutil.Process(started.pid).children(recursive=True)
            started.send_signal(signal.SIGTERM)
            code = started.wait(90)
            _, left = psutil.wait_procs(family, timeout=10)
        finally:
            end(started)
    text = (tmp_path / "log").read_text()
    assert (code, left, len(family)) == (1, [], 2) and "go on:   the same command with --resume auto (exit code 75)" in text, text
    assert len(list((tmp_path / "run" / "language" / "checkpoints").glob("step_*"))) == 1
    assert not (tmp_path / "run" / "language" / "model").exists()


def end(started: subprocess.Popen) -> None:
    try:
        os.killpg(started.pid, signal.SIGKILL)
    except ProcessLookupError:  # all of them have ended
        pass
    started.wait(10)


def await_text(log: Path, text: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 150
    while text not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
