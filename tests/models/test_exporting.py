"""torch.export and ONNX of models with experts: the program equals the model at batch sizes that were not traced."""

import numpy as np
import pytest
import torch
from torch import nn

from helpers.small_model import EXPERTS, GROUPS, ROUTERS, assert_near, audio_inputs, clip_inputs, small_model, text_inputs

MODELS = {
    **{name: {**GROUPS, **changes} for name, changes in ROUTERS.items()},
    "modality gate": dict(**EXPERTS, gate="modality"),
    "geglu, prompts": dict(**GROUPS, expert_activation="geglu", prompt_length=2),
}
SHALLOW = dict(num_hidden_layers=2, moe_layers="last:1")
BATCH = torch.export.Dim("batch")


def inputs_of(modalities: str, batch: int) -> dict[str, torch.Tensor]:
    found = text_inputs(([5, 8, 1, 12, 3, 9, 7])[:batch], 12)
    return found if modalities == "text" else {**found, **clip_inputs(batch, 2, 4, 4), **audio_inputs(batch)}


ON_TEXTS = ("top-2 with capacity", "linears, by context", "modality gate", "geglu, prompts")  # which have padding
CASES = [("all", "expert choice"), ("all", "top-2 drop-free"), *(("text", name) for name in ON_TEXTS)]


@pytest.mark.parametrize("modalities, name", CASES)
def test_torch_export(modalities, name):
    model, traced = small_model(**{**MODELS[name], **SHALLOW}), inputs_of(modalities, 3)
    program = torch.export.export(model, (), traced, dynamic_shapes={key: {0: BATCH} for key in traced}).module()
    for batch in (1, 2, 7):
        inputs = inputs_of(modalities, batch)
        with torch.no_grad():
            found, wanted = program(**inputs), model(**inputs)
        for modality in ("vision", "audio", "text") if modalities == "all" else ("text",):
            assert_near(found[f"{modality}_pooled"], wanted[f"{modality}_pooled"], 2e-5)
        assert len(wanted.embeddings) == (6 if modalities == "all" else 2)
        for pair, vectors in wanted.embeddings.items():
            assert_near(found["embeddings"][pair], vectors, 2e-5)


class Vectors(nn.Module):
    """What is exported: named inputs to the projections, without the dataclass around them."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values):
        return tuple(self.model(**dict(zip(self.names, values))).embeddings.values())


@pytest.mark.parametrize("name", ["expert choice", "top-2 drop-free"])
def test_onnx(name, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    traced = inputs_of("all", 3)
    model = Vectors(small_model(**{**MODELS[name], **SHALLOW}), list(traced)).eval()
    torch.onnx.export(
        model, tuple(traced.values()), tmp_path / "model.onnx", dynamo=True, input_names=list(traced), verbose=False,
        dynamic_shapes=(tuple({0: BATCH} for _ in traced),),
    )  # fmt: skip
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 2, 7):
        inputs = inputs_of("all", batch)
        found = session.run(None, {key: value.numpy() for key, value in inputs.items()})
        for got, wanted in zip(found, model(*inputs.values()), strict=True):
            np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=5e-5, atol=5e-5)
