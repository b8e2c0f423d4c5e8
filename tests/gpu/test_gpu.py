"""The model and one step of training on a CUDA device against the CPU; skipped where there is none."""

import pytest
import torch

from imp_ds.models.imp.initialization import initialize_seeded
from imp_ds.pretraining import ImpForPreTraining
from imp_ds.recipes import get_recipe
from imp_ds.tasks import Batch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

B, IMAGE_TOKENS, WORDS = 8, 16, 12


def tiny_model() -> ImpForPreTraining:
    run = get_recipe("digits_debug")
    config = run.model.to_config(64, run.tasks)
    model = ImpForPreTraining(config).eval()
    initialize_seeded(model, 0, config.initializer_range)
    return model


def image_text_batch(model: ImpForPreTraining) -> Batch:
    generator = torch.Generator().manual_seed(0)
    values = 3
    for size in model.config.vision_patch:
        values *= size
    mask = torch.ones(B, WORDS, dtype=torch.int64)
    mask[:, 7:] = 0
    inputs = {
        "vision": {
            "pixel_values": torch.randint(0, 256, (B, IMAGE_TOKENS, values), dtype=torch.uint8, generator=generator),
            "pixel_positions": torch.rand(B, IMAGE_TOKENS, 3, generator=generator),
        },
        "text": {"input_ids": torch.randint(1, 64, (B, WORDS), generator=generator), "attention_mask": mask},
    }
    return Batch("image_text", inputs, {"label": torch.arange(B) % 4})


def test_embeddings_equal_those_of_the_cpu():
    model = tiny_model()
    batch = image_text_batch(model)
    with torch.no_grad():
        expected = model.imp(**batch.inputs["vision"], **batch.inputs["text"]).embeddings
        batch = batch.to("cuda")
        found = model.to("cuda").imp(**batch.inputs["vision"], **batch.inputs["text"]).embeddings
    for name, vectors in expected.items():
        # float32 products may use tf32 units; unit vectors, so this is an absolute error of the cosine
        torch.testing.assert_close(found[name].cpu(), vectors, atol=5e-3, rtol=0)


def test_bfloat16_routes_in_float32_and_stays_near():
    model = tiny_model()
    batch = image_text_batch(model)
    expected = model(batch)[0]
    loss, _, reports = model.to("cuda", torch.bfloat16)(batch.to("cuda"))
    assert all(report.z_loss.dtype == torch.float32 for layers in reports.values() for report in layers)
    assert abs(float(loss) - float(expected)) < 0.1  # bfloat16 has 8 bits: losses here are near 2


def test_a_step_under_the_shipped_gpu_configuration():
    from imp_ds.train import ds_config
    from imp_ds.train.engine import Engine, build_model, start_process_group

    run = get_recipe("digits_debug")
    device = start_process_group(60)
    config = run.model.to_config(64, run.tasks)
    ds = ds_config.resolve(ds_config.load(ds_config.default_path(1, "cuda")), run, 1)
    engine = Engine(build_model(config, 0, 1), ds, weight_decay=1e-4, device=device)
    batch = image_text_batch(engine.model).to(device)
    losses = []
    for _ in range(8):
        loss, _, _ = engine.forward(batch)
        engine.update(1e-3)
        losses.append(float(loss))
    assert losses[-1] < losses[0]  # the same batch again and again must get easier
