"""Exported folders load by trust_remote_code where imp_ds and all that it needs beside torch and transformers are hidden.

Shapes: B batch, C width.
"""

import ast
import json
import sys
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoModel

from helpers.processes import environment, run
from helpers.small_loader import processor as small_processor
from helpers.small_model import EXPERTS, assert_near, small_config
from helpers.talking import export_talking
from imp_ds import ImpForPreTraining
from imp_ds.commands.sharing.carried_code import ENTRY, FOLDER, Rewriting, write_code
from imp_ds.errors import UserError, absent
from imp_ds.families.imp.family import ImpFamily
from imp_ds.families.uni_moe.family import UniMoeFamily
from imp_ds.objectives import task_entry

HIDDEN = (
    "imp_ds", "deepspeed", "av", "soundfile", "datasets", "sklearn", "matplotlib", "triton",
    "sentencepiece", "accelerate", "torchvision", "scipy", "tensorboard", "peft",
)  # fmt: skip
LOADS = f"""
import json, os, sys
from importlib.machinery import PathFinder
import numpy as np

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {HIDDEN!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
imp, uni_moe, out = sys.argv[1:]
import torch
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM
from transformers import AutoProcessor

given = np.load(os.path.join(out, "given.npz"))
trust = dict(trust_remote_code=True)
model, processor = (kind.from_pretrained(imp, **trust) for kind in (AutoModel, AutoProcessor))
inputs = dict(
    vision=processor(images=given["image"]), audio=processor(audio=given["audio"], sampling_rate=16000),
    text=processor(text=["images 1", "number 3"]),
)
cut = AutoImageProcessor.from_pretrained(imp, **trust)(given["image"], return_tensors="pt")["pixel_values"]
assert torch.equal(cut, inputs["vision"]["pixel_values"])
assert AutoFeatureExtractor.from_pretrained(imp, **trust).sampling_rate == 16000
with torch.no_grad():
    found = {{name: model.eval().get_features(name, **named).pooler_output for name, named in inputs.items()}}
model.save_pretrained(os.path.join(out, "again"))
again = AutoModel.from_pretrained(os.path.join(out, "again"), **trust).eval()
with torch.no_grad():
    found["again"] = again.get_text_features(**inputs["text"]).pooler_output

asker = AutoProcessor.from_pretrained(uni_moe, **trust)
read = asker(text="what is <image> this?", images=given["picture"], return_tensors="pt")
answers = [kind.from_pretrained(uni_moe, **trust).eval() for kind in (AutoModelForCausalLM, AutoModelForMultimodalLM)]
with torch.no_grad():
    found["logits"], found["same"] = (one(**read).logits for one in answers)
    found["said"] = answers[0].generate(**read, max_new_tokens=4, do_sample=False)
torch.save(found, os.path.join(out, "found.pt"))
print(sorted(name for name in sys.modules if name.split(".")[0] in {HIDDEN!r}))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An IMP model with experts, and one of Uni-MoE with its towers, as `export` writes them; and inputs."""
    root = tmp_path_factory.mktemp("carried")
    torch.manual_seed(0)
    objectives = {"image_text": task_entry([{"kind": "contrastive", "pairs": [["vision", "text"], ["audio", "text"]]}])}
    processor = small_processor()
    sizes = dict(
        vision_patch=(4, 8, 8), audio_patch=(16, 16), audio_max=(64, 32), text_max=256, vocab_size=len(processor.tokenizer)
    )
    model = ImpForPreTraining(small_config(**EXPERTS, **sizes, objectives=objectives)).eval()
    model.save_pretrained(root / "imp")
    processor.save_pretrained(root / "imp")
    write_code(root / "imp", ImpFamily().auto_classes())
    uni_moe, talker, asker = export_talking(tmp_path_factory.mktemp("talking"))
    write_code(uni_moe, UniMoeFamily().auto_classes())
    rng = np.random.default_rng(0)
    given = dict(
        image=rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), audio=rng.standard_normal(5120).astype(np.float32) / 9,
        picture=rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
    )  # fmt: skip
    np.savez(root / "given.npz", **given)
    return root, model.imp, processor, uni_moe, talker, asker, given


def test_they_load_and_give_the_same(folders):
    root, model, processor, uni_moe, talker, asker, given = folders
    env = environment(HF_MODULES_CACHE=str(root / "modules"))
    finished = run([sys.executable, "-I", "-c", LOADS, root / "imp", uni_moe, root], timeout=240, env=env)
    assert finished.output.splitlines()[-1] == "[]", finished
    found = torch.load(root / "found.pt")
    inputs = dict(
        vision=processor(images=given["image"]), audio=processor(audio=given["audio"], sampling_rate=16000),
        text=processor(text=["images 1", "number 3"]),
    )  # fmt: skip
    read = asker(text="what is <image> this?", images=given["picture"], return_tensors="pt")
    with torch.no_grad():
        for modality, named in inputs.items():
            assert_near(found[modality], model.get_features(modality, **named).pooler_output)
        assert_near(found["logits"], talker.uni_moe(**read).logits)
        said = talker.uni_moe.generate(**read, max_new_tokens=4, do_sample=False)
    assert torch.equal(found["said"], said) and torch.equal(found["same"], found["logits"])
    assert torch.equal(found["again"], found["text"])  # what such a model saves loads again


def test_every_file_is_python_and_imports_only_what_is_there(folders):
    root, *_ = folders
    code = root / "imp" / FOLDER
    names = {path.stem for path in code.iterdir()}
    assert ENTRY in names and len(names) > 50
    for path in code.iterdir():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and (node.module or node.names[0].name) in names, path
            elif isinstance(node, ast.ImportFrom):
                assert not node.module.startswith("imp_ds"), path
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("imp_ds") for alias in node.names), path


def test_the_configurations_name_the_classes(folders):
    root, *_ = folders
    config, processor = (json.loads((root / "imp" / name).read_text()) for name in ("config.json", "processor_config.json"))
    assert config["auto_map"]["AutoModel"] == f"{FOLDER}/{ENTRY}.ImpModel"
    assert processor["auto_map"] == {"AutoProcessor": f"{FOLDER}/{ENTRY}.ImpProcessor"}
    assert processor["image_processor"]["auto_map"] == {"AutoImageProcessor": f"{FOLDER}/{ENTRY}.ImpImageProcessor"}


def test_where_imp_ds_is_its_own_classes_load_the_folder(folders):
    root, model, *_ = folders
    assert type(AutoModel.from_pretrained(root / "imp", trust_remote_code=True)) is type(model)
    assert type(AutoModel.from_pretrained(root / "imp")) is type(model)


class TestRewriting:
    def test_imports_by_hand(self):
        source = """\
import os
import torch
import imp_ds.models.imp  # registers
from imp_ds.errors import UserError
from imp_ds.modalities.vision import patches as vision
HOME = "imp_ds.modalities.sensors"
def f(é="ü"):
    from imp_ds.moe.layer import (
        MoELayer,
    )
    import triton.language as tl
from PIL import Image
from pydantic import Field
"""
        rewriting = Rewriting("imp_ds.models.made", source)
        assert (
            rewriting.text()
            == """\
import os
import torch
from . import models_imp  # registers
from .errors import UserError
from . import modalities_vision_patches as vision
HOME = __package__ + ".modalities_sensors"
def f(é="ü"):
    from .moe_layer import MoELayer
    try:
        import triton.language as tl
    except ImportError:
        raise
try:
    from PIL import Image
except ImportError:
    from .errors import absent
    Image = absent("pillow", "Image")
from pydantic import Field


if False:  # imported by name; transformers takes along what such lines name
    from .modalities_sensors import __doc__ as _
    from .modalities_vision_patches import __doc__ as _
    from .models_imp import __doc__ as _
"""
        )
        assert rewriting.needed == {
            "imp_ds.models.imp", "imp_ds.errors", "imp_ds.modalities.vision.patches", "imp_ds.modalities.sensors",
            "imp_ds.moe.layer",
        }  # fmt: skip

    def test_what_no_model_may_need_is_refused(self):
        with pytest.raises(UserError, match="cannot be carried"):
            Rewriting("imp_ds.models.made", "from imp_ds.train.trainer import train").text()


def test_names_of_an_absent_package_may_be_looked_at_and_say_what_to_install_when_called():
    image = absent("pillow", "Image")
    assert not isinstance(3, image.Image) and image.Image | None
    warnings.filterwarnings("ignore", category=image.DecompressionBombWarning)
    with pytest.raises(UserError, match=r"(?s)Image\.open is needed here.*pip install pillow"):
        image.open("photo.jpg")
    with pytest.raises(ZeroDivisionError):
        try:
            1 / 0
        except image.UnidentifiedImageError:
            pass
