"""What only a CUDA device can show: like the CPU, kernels, compiled steps, no waiting; skipped where there is none."""

import pytest
import torch

from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.models.initialization import initialize_seeded
from imp_ds.recipes import get_recipe
from imp_ds.tasks import Batch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

B, IMAGE_TOKENS, WORDS = 8, 16, 12


def tiny_model(**settings) -> ImpForPreTraining:
    run = get_recipe("digits_debug")
    config = run.model.model_copy(update=settings).to_config(64, run.tasks)
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


def step_engine_of(name: str, **settings):
    """An engine of a debug twin under the GPU configuration of that name, on batches of images and texts."""
    from imp_ds.families.build import build_module
    from imp_ds.families.imp.pretraining import ImpForPreTraining
    from imp_ds.train.engine import ds_config
    from imp_ds.train.engine.engine import Engine, start_process_group

    run = get_recipe("digits_debug")
    run.model = run.model.model_copy(update=settings)
    device = start_process_group(60)
    ds = ds_config.resolve(ds_config.load(ds_config.FOLDER / name), run, 1)
    return Engine(build_module(ImpForPreTraining, run.model.to_config(64, run.tasks), 0, 1), ds, weight_decay=1e-4, device=device)


@pytest.mark.parametrize("name", ["gpu_zero1.json", "gpu_zero2.json", "gpu_zero3.json"])
def test_a_step_under_the_shipped_gpu_configurations(name):
    engine = step_engine_of(name)
    batch = image_text_batch(engine.model).to("cuda")
    losses = []
    for _ in range(8):
        loss, _, _ = engine.forward(batch)
        engine.update(1e-3)
        losses.append(float(loss))
    assert losses[-1] < losses[0]  # the same batch again and again must get easier


def test_compiled_steps_are_plain_ones_and_nothing_is_compiled_again():
    from imp_ds.train.engine.compilation import CompiledBlocks

    losses = []
    for compiled in (False, True):
        engine = step_engine_of("gpu_zero1.json")
        batch = image_text_batch(engine.model).to("cuda")
        if compiled:
            torch.compiler.reset()
            blocks = CompiledBlocks(engine.model, shapes=2)
            blocks.warm(engine, [batch], {"image_text": 1}, 1)
            made = blocks.graphs
        for _ in range(6):
            loss, _, _ = engine.forward(batch)
            engine.update(1e-4)
        losses.append(float(loss))
    assert blocks.graphs == made > 0
    assert losses[1] == pytest.approx(losses[0], abs=0.02)  # bfloat16, rounded at other places


@pytest.mark.parametrize("settings", [{}, {"router": "top_k"}, {"router": "top_k", "drop_tokens": False}])
def test_the_encoder_never_waits_for_the_device(settings):
    """Forward and backward of images, which have no padding: with drop-free routing padding is counted on the device."""
    model = tiny_model(**settings).to("cuda", torch.bfloat16).train()
    images = image_text_batch(model).to("cuda").inputs["vision"]
    encode = lambda: model.imp.encode("vision", images).pooled_BD.sum().backward()  # noqa: E731
    encode()  # what libraries set up once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # whoever waits now raises
    try:
        encode()
        waited = None
    except RuntimeError as error:
        waited = str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waited is None


@pytest.mark.parametrize("count", [None, "ragged"])
def test_the_experts_on_triton_are_those_of_plain_torch(count):
    """At a width and number of rows that fill the device; tests/moe/test_gpu_experts.py holds both to float64."""
    from imp_ds.moe.kernels.compute import mixture, stacked_mixture

    generator = torch.Generator("cuda").manual_seed(0)
    draw = lambda *shape, scale=1.0: torch.randn(*shape, device="cuda", generator=generator).mul(scale)  # noqa: E731
    experts, tokens, width, hidden = 8, 8192, 768, 3072
    given = [draw(tokens, width), draw(experts, width, hidden, scale=0.02), draw(experts, hidden, width, scale=0.02)]
    x, w1, w2 = (value.bfloat16().requires_grad_() for value in given)
    weight = torch.rand(tokens, device="cuda", generator=generator).requires_grad_()
    index = torch.randint(0, tokens, (tokens,), device="cuda", generator=generator)
    rows = [2000, 0, 1192, 1000, 1000, 1000, 1999, 1]
    count = torch.tensor(rows, device="cuda") if count else None
    found = []
    for function in (mixture, stacked_mixture):
        y = function(x, index, weight if function is mixture else weight.bfloat16(), count, w1, w2, None)
        found.append([y, *torch.autograd.grad(y.float().square().sum(), [x, weight, w1, w2])])
    for name, one, other in zip(("y", "x", "weight", "w1", "w2"), *found):
        assert (one - other).float().norm() < 0.02 * other.float().norm(), name  # a handful of bfloat16 roundings
