"""The evaluator on a real model: one process against a direct computation, two gloo processes against one."""

import json
import os

import pytest
import torch
import torch.distributed as dist

from helpers.probed import probe_evaluator, probe_model, write_squares
from imp_ds.errors import UserError
from imp_ds.evaluation import by_name, evaluate, expert_usage
from imp_ds.evaluation.embedding import prompt_batches
from imp_ds.evaluation.split import CachedBatches
from imp_ds.evaluation.zero_shot import ClassPrompts
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.evaluation.similarity import TextEvaluator
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.imp.modeling_imp import ImpModel
from imp_ds.objectives import task_entry
from imp_ds.parallel.groups import rank, world_size
from imp_ds.tasks import Batch

ROWS, LENGTH, SECONDS_TO_WAIT = 23, 8, 120
COMPARES = {"kind": "contrastive", "pairs": [["vision", "text"]], "matryoshka": [6, 9]}
WORDS = ["one", "two", "three", "four", "five", "six", "seven"]


def tokenizer(texts, padding, truncation, max_length, return_tensors):
    """Letters as tokens; enough of a Hugging Face tokenizer for this file."""
    assert (padding, truncation, return_tensors) == ("max_length", True, "pt")
    ids = torch.zeros(len(texts), max_length, dtype=torch.long)
    for row, text in enumerate(texts):
        letters = [1 + ord(letter) % 90 for letter in text][:max_length]
        ids[row, : len(letters)] = torch.tensor(letters)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def tiny_model(**changes) -> ImpModel:
    torch.manual_seed(0)
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, common_dim=12, vocab_size=100)
    vision = dict(vision_patch=(1, 2, 2), vision_max=(1, 4, 4), num_experts=4, moe_layers="last:1", group_examples=1)
    return ImpModel(ImpConfig(**{**shape, **vision, "initializer_range": 0.5, **changes}))


def captions() -> list[str]:
    return [f"{WORDS[i % 7]} {i // 14}" for i in range(ROWS)]  # rows 7 apart may share a caption


def split_batches(batch_size: int):
    """A split as `evaluation_batches` gives it: batches dealt to the ranks in turn, the last row repeated to fill up."""
    values = torch.randint(0, 256, (ROWS, 4, 12), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    positions = torch.tensor([[0.0, y / 2, x / 2] for y in range(2) for x in range(2)]).repeat(ROWS, 1, 1)
    text = tokenizer(captions(), "max_length", True, LENGTH, "pt")
    for turn in range(-(-ROWS // (batch_size * world_size()))):
        first = (turn * world_size() + rank()) * batch_size
        index = torch.arange(first, first + batch_size)
        row = index.clamp(max=ROWS - 1)
        inputs = {
            "vision": {"pixel_values": values[row], "pixel_positions": positions[row]},
            "text": {name: tensor[row] for name, tensor in text.items()},
        }
        yield Batch("image", inputs, {"index": row, "valid": index < ROWS})


def record(**changes) -> Evaluation:
    views = {"vision": {"height": 4, "width": 4}, "text": {"length": LENGTH}}
    source = {"path": "images", "vision": "file_name", "text": "captions", "label": "label"}
    return Evaluation(**{**dict(name="image", modality="vision", source=source, views=views, classes="images"), **changes})


def build(batch_size: int = 4, batches=None) -> TextEvaluator:
    return TextEvaluator(
        record(), batches or (lambda: split_batches(batch_size)), tokenizer, labels=torch.arange(ROWS) % 7,
        classes=ClassPrompts(WORDS, ["{}", "a {}"]), captions=[[text] for text in captions()], batch_size=batch_size,
    )  # fmt: skip


def test_results_equal_a_direct_computation():
    """Of whole vectors, and of their first six and nine values, which a task of the model has compared."""
    model, evaluator = tiny_model(objectives={"image": task_entry([COMPARES])}), build()
    results = by_name(evaluate(model.train(), [evaluator]))
    assert model.training
    model.eval()
    (full,) = split_batches(ROWS)
    with torch.no_grad():
        z_NC = model.project(model.encode("vision", full.inputs["vision"]).pooled_BD, "vision", "text").double()
        t_NC = model.project(model.encode("text", full.inputs["text"]).pooled_BD, "text", "vision").double()
        prompts = tokenizer([t.format(w) for w in WORDS for t in ("{}", "a {}")], "max_length", True, LENGTH, "pt")
        p_PC = model.project(model.encode("text", prompts).pooled_BD, "text", "vision").double()
    expected = {}
    for width, first in ((12, ""), (6, "first_6/"), (9, "first_9/")):
        cut = [vectors[:, :width] / vectors[:, :width].norm(dim=1, keepdim=True) for vectors in (z_NC, t_NC, p_PC)]
        expected |= {name.replace("/image/", f"/image/{first}", 1): value for name, value in direct_scores(*cut).items()}
    assert results == pytest.approx(expected, abs=1e-9) and list(results) == list(expected)
    torch.testing.assert_close(evaluator.vectors_NC.double(), z_NC, atol=1e-5, rtol=0)
    usage = expert_usage([evaluator])
    assert list(usage) == ["image", "text"] and [len(usage["image"]), len(usage["image"][0])] == [1, 4]
    assert sum(usage["image"][0]) == pytest.approx(1.0, abs=1e-5)
    assert by_name(evaluate(model, [evaluator])) == results  # from the kept batches


def direct_scores(z_NC, t_NC, p_PC) -> dict[str, float]:
    """What unit vectors of the pictures, of their captions and of the prompts score, row by row."""
    class_KC = p_PC.view(7, 2, -1).mean(1)
    class_KC = class_KC / class_KC.norm(dim=1, keepdim=True)
    names = captions()
    order = {
        "zero": (z_NC @ class_KC.T).argsort(1, descending=True), "image_to_text": (z_NC @ t_NC.T).argsort(1, descending=True),
        "text_to_image": (t_NC @ z_NC.T).argsort(1, descending=True),
    }  # fmt: skip
    expected = {}
    for k in (1, 5):
        expected[f"zero_shot/image/top{k}"] = sum(i % 7 in order["zero"][i, :k].tolist() for i in range(ROWS)) / ROWS
    own = [[order["zero"][i, 0] == k for i in range(ROWS) if i % 7 == k] for k in range(7)]
    expected["zero_shot/image/mean_per_class_recall"] = sum(sum(found).item() / len(found) for found in own) / 7
    for direction in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            hits = [names[i] in [names[j] for j in order[direction][i, :k].tolist()] for i in range(ROWS)]
            expected[f"retrieval/image/{direction}/R@{k}"] = sum(hits) / ROWS
    return expected


def _work(own_rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=own_rank, world_size=2)
    evaluator = build()
    results = by_name(evaluate(tiny_model(), [evaluator]))
    probed = by_name(evaluate(probe_model(), [probe_evaluator(folder)]))
    with open(os.path.join(folder, f"rank{own_rank}.json"), "w") as file:
        json.dump([results, evaluator.vectors_NC.tolist(), expert_usage([evaluator]), probed], file)
    try:  # one rank cannot read its second batch: both stop, with its message
        by_name(evaluate(tiny_model(), [build(batches=damaged_batches)]))
    except UserError as error:
        assert "file 7 is damaged" in str(error)
    else:
        raise AssertionError("a damaged batch was not noticed")
    dist.barrier()
    dist.destroy_process_group()


def damaged_batches():
    batches = list(split_batches(4))
    yield batches[0]
    if rank() == 1:
        raise UserError("file 7 is damaged")
    yield from batches[1:]


@pytest.mark.distributed
def test_two_ranks_equal_one(tmp_path):
    write_squares(tmp_path)
    context = torch.multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(i, str(tmp_path))) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SECONDS_TO_WAIT)
        if worker.is_alive():
            worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    evaluator = build()
    results = by_name(evaluate(tiny_model(), [evaluator]))
    for own_rank in range(2):
        found, vectors, usage, probed = json.loads((tmp_path / f"rank{own_rank}.json").read_text())
        assert found == pytest.approx(results, abs=1e-9)
        torch.testing.assert_close(torch.tensor(vectors), evaluator.vectors_NC, atol=1e-5, rtol=0)
        assert list(usage) == ["image", "text"]
        assert probed == by_name(evaluate(probe_model(), [probe_evaluator(tmp_path)]))  # of uneven shares of the rows


def test_prompts_are_dealt_in_equal_shapes_and_each_once():
    prompts = [f"p{i}" for i in range(11)]
    seen = []
    for own_rank in range(2):
        batches = list(prompt_batches(tokenizer, prompts, 5, batch_size=3, rank=own_rank, world=2))
        assert [tuple(b.inputs["text"]["input_ids"].shape) for b in batches] == [(3, 5), (3, 5)]
        seen += [i for b in batches for i, valid in zip(b.targets["index"].tolist(), b.targets["valid"].tolist()) if valid]
    assert sorted(seen) == list(range(11))


def test_a_dense_model_reports_no_experts_and_modes_are_restored_after_a_failure():
    evaluator = build()
    by_name(evaluate(tiny_model(num_experts=0), [evaluator]))
    assert expert_usage([evaluator]) == {}
    model = tiny_model(pairs=[["audio", "text"]]).train()
    with pytest.raises(UserError, match="no projection"):
        by_name(evaluate(model, [build()]))
    assert model.training


def test_batches_over_the_limit_are_not_kept():
    made = []

    def make():
        made.append(1)
        yield Batch("t", {"text": {"input_ids": torch.zeros(1 << 18, dtype=torch.int32)}}, {})  # 1 MiB

    for limit, runs in ((1, 1), (0, 2)):
        made.clear()
        kept = CachedBatches(make, limit)
        assert len(list(kept)) == len(list(kept)) == 1 and len(made) == runs


@pytest.mark.parametrize(
    "changes, arguments, word",
    [
        ({}, {}, "measures nothing"),
        ({"views": {"vision": {}}}, {"captions": ["a"]}, "lacks a view"),
        ({}, {"classes": ClassPrompts(["a"], ["{}"])}, "no column"),
        ({}, {"classes": ClassPrompts(["a"], ["{}"]), "labels": torch.tensor([0, 1])}, "no class name"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, arguments, word):
    with pytest.raises(UserError, match=word):
        TextEvaluator(record(**changes), list, tokenizer, **arguments)
