"""Code that lies in a model's folder does not run, and nobody is asked, even where standard input would say "y"."""

import io
import json

import pytest

from imp_ds import foreign_code
from imp_ds.errors import UserError
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.processing_imp import ImpProcessor
from imp_ds.models.imp.tokenization_imp import load_tokenizer, train_tokenizer
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A processor's folder whose tokenizer asks for a class of its own, in a module that leaves a mark when it runs."""
    folder, mark = tmp_path / "model", tmp_path / "ran"
    tokenizer = train_tokenizer(["a b c"] * 8, 64, max_length=8)
    ImpProcessor(ImpImageProcessor(), ImpVideoProcessor(), ImpFeatureExtractor(), tokenizer).save_pretrained(folder)
    (folder / "planted.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nfrom transformers import PreTrainedTokenizerFast\n"
        "class Planted(PreTrainedTokenizerFast): pass\n"
    )
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"tokenizer_class": "Planted", "auto_map": {"AutoTokenizer": ["planted.Planted", "planted.Planted"]}}
    path.write_text(json.dumps(config))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it was asked"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder, mark


@pytest.mark.parametrize(
    "load", [ImpProcessor.from_pretrained, lambda folder: load_tokenizer(str(folder))], ids=["processor", "tokenizer"]
)
def test_code_of_a_folder_does_not_run(planted, load):
    folder, mark = planted
    try:
        load(folder)
    except (UserError, ValueError):
        pass  # refused for its class: as good
    assert not mark.exists()


def test_it_runs_where_the_command_line_says_so(planted, monkeypatch):
    folder, mark = planted
    monkeypatch.setattr(foreign_code, "_TRUSTED", True)
    load_tokenizer(str(folder))
    assert mark.exists()
