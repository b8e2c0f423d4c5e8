"""Code that lies in a model's folder does not run, and nobody is asked, even where standard input would say "y"."""

import io
import json
import shutil
from pathlib import Path

import pytest
import transformers

from helpers.ranks import Ranks, command
from helpers.tunable import digits_run, export_untrained
from imp_ds import foreign_code
from imp_ds.commands.comparison.jobs import plan_jobs
from imp_ds.commands.exported_model import load_model
from imp_ds.commands.tune_command import tune
from imp_ds.commands.tuning import Tuning
from imp_ds.commands.upcycle_command import upcycle_folder
from imp_ds.data.sources import open_reader
from imp_ds.errors import UserError
from imp_ds.families.imp.initial_weights import load_initial
from imp_ds.families.imp.processor import build_extractor
from imp_ds.modalities.text.tokenizers import load_tokenizer
from imp_ds.models.imp.processing_imp import ImpProcessor
from imp_ds.recipes import get_recipe
from imp_ds.tasks import Source

AUTO = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor", "AutoVideoProcessor")
TOKENIZER = {"tokenizer_class": "Planted", "auto_map": {"AutoTokenizer": ["planted.Planted", "planted.Planted"]}}


@pytest.fixture(scope="module")
def exported(digits_corpus, tmp_path_factory) -> Path:
    return export_untrained(digits_run(digits_corpus, num_experts=0), tmp_path_factory.mktemp("exported"))


@pytest.fixture
def planted(exported, tmp_path, monkeypatch):
    """A model's folder whose files ask for classes of their own, in a module that leaves a mark when it runs."""
    folder, mark = tmp_path / "model", tmp_path / "ran"
    folder.mkdir()
    code = f"open({str(mark)!r}, 'w').close()\nfrom transformers import PreTrainedTokenizerFast\n"
    (folder / "planted.py").write_text(code + "class Planted(PreTrainedTokenizerFast): pass\n")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code + "def generate(model, **kwargs): pass\n")
    for path in exported.iterdir():
        if path.suffix == ".json" and path.name not in ("run_config.json", "tokenizer.json"):
            added = TOKENIZER if path.name == "tokenizer_config.json" else {"auto_map": dict.fromkeys(AUTO, "planted.Planted")}
            (folder / path.name).write_text(json.dumps(json.loads(path.read_text()) | added))
        else:
            (folder / path.name).symlink_to(path)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it was asked"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder, mark


def start_from(folder: Path) -> None:
    changed = get_recipe("digits_debug").override([f"train.init_from={folder}"])
    config = changed.model.to_config(300, changed.tasks)
    build_extractor(changed, config, {})
    load_initial(None, folder, load_tokenizer(str(folder)))


COMMANDS = {
    "the processor": ImpProcessor.from_pretrained,
    "data.tokenizer": lambda folder: load_tokenizer(str(folder)),
    "eval and predict": load_model,
    "upcycle": lambda folder: upcycle_folder(folder, folder.parent / "upcycled", num_experts=2),
    "tune": lambda folder: tune(folder, "image_digit", Tuning(), folder.parent / "tuned"),
    "train.init_from": start_from,
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_code_of_a_folder_does_not_run(planted, command):
    folder, mark = planted
    try:
        command(folder)
    except (UserError, ValueError, AttributeError):
        pass  # refused for its class: as good
    assert not mark.exists()


def test_an_audio_tokenizer_from_elsewhere_is_refused(planted):
    """transformers would load it, and ask whether its code may run."""
    folder, mark = planted
    path = folder / "processor_config.json"
    foreign = {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": str(folder)}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"audio_tokenizer": foreign}))
    with pytest.raises(UserError, match="has no audio tokenizer"):
        load_model(folder)
    assert not mark.exists()


def test_a_script_in_a_folder_of_data_does_not_run(tmp_path):
    """`datasets` once ran FOLDER/FOLDER.py."""
    folder, mark = tmp_path / "corpus" / "mine", tmp_path / "ran"
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    data = get_recipe("digits_debug").data
    with pytest.raises(UserError):
        open_reader(folder.parent, Source(format="huggingface", path="mine", text="text"), "train", data)
    assert not mark.exists()


def command_with_cache(cache: str, *words: str) -> None:
    """`python -m imp_ds WORDS`, where transformers keeps the code of others in a folder of this test."""
    transformers.dynamic_module_utils.HF_MODULES_CACHE = cache
    command(*words)


def test_from_a_shell_it_runs_where_the_command_line_says_so_alone(planted, tmp_path):
    """The option may stand anywhere: scripts that start a command can be given it only after that."""
    folder, mark = planted
    started = []
    for name, flag in (("without", []), ("with", [foreign_code.OPTION])):
        copy = shutil.copytree(folder, tmp_path / name, symlinks=True)
        (copy / "planted.py").write_text((folder / "planted.py").read_text().replace(str(mark), str(tmp_path / f"ran_{name}")))
        words = ["predict", copy, tmp_path, "--task", "image_text", *flag]
        cache = str(tmp_path / f"cache_{name}")
        started.append(Ranks(command_with_cache, cache, *words, ranks=1, folder=tmp_path / f"logs_{name}"))
    done = [one.wait(100) for one in started]
    assert [one.codes for one in done] == [[2], [2]], str(done)  # the task has no classes
    assert (tmp_path / "ran_with").exists() and not (tmp_path / "ran_without").exists(), str(done)
    assert not any("Traceback" in one.outputs[0] or "[y/N]" in one.outputs[0] for one in done), str(done)


def test_processes_that_are_started_do_as_their_parent_does(monkeypatch, tmp_path):
    (job,) = plan_jobs(tmp_path, ["dense"], 1, data=tmp_path, steps=3, samples=2, settings=[])
    assert foreign_code.OPTION not in job.command()
    monkeypatch.setattr(foreign_code, "_TRUSTED", True)
    assert job.command()[-1] == foreign_code.OPTION
