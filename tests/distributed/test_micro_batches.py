"""A batch in 2 and 4 micro-batches has the loss, gradient and step of the undivided one, for every task and ZeRO stage, and takes
the memory of one micro-batch, however many there are.

Shapes: B samples, D width.
"""

import exactness_worker
import pytest
import torch
import torch.nn.functional as F

from benchmarks.exact.cases import CLIP, Case
from benchmarks.exactness import parse
from helpers.ranks import run_ranks
from helpers.small_run import make_batch, make_config, make_run
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.models.initialization import initialize_seeded
from imp_ds.tasks import Batch
from imp_ds.train.engine.micro_batches import MicroBatches

STEPS = 4  # each task, and the first once more
# 2 micro-batches with even exchanges, 4 with uneven ones; both on both at one stage, elsewhere as many runs as there are settings
CASES = [
    Case("expert choice" if n == 2 else "top-2 drop-free", 2, ep_size, stage, offload, clip=CLIP if stage else 0.0,
         variant=f"micro-batches {n}", steps=STEPS)
    for stage in range(4) for offload in (False, True) if stage or not offload
    for ep_size, n in ((1, 2), (2, 4), *(((1, 4), (2, 2)) if stage == 2 else ()))
]  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("micro_batches")
    run_ranks(exactness_worker.references, str(folder), CASES, ranks=1, folder=folder / "one", limit_s=60)
    run_ranks(exactness_worker.measure, str(folder), CASES, ranks=2, folder=folder / "two", limit_s=240)
    return {result.case: result.found for result in map(parse, (folder / "results_2.jsonl").read_text().splitlines())}


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES, ids=str)
def test_micro_batches_equal_the_undivided_batch(results, case):
    found = results[case]
    assert max(found[name] for name in ("loss", "norm", "experts", "rest")) < 1e-5, found
    # where nothing is clipped, gradients are far larger than Adam's epsilon, and it makes steps of some size of rounding alone
    assert found["weight"] < (1e-5 if case.clip else 1e-4), found


class Held:
    """Bytes that autograd holds for the backward, each memory once, weights left out; `peak` is the most at any time."""

    def __init__(self, model: torch.nn.Module):
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.holders, self.alive, self.peak = {}, 0, 0

    def pack(self, tensor: torch.Tensor) -> "Ticket":
        return Ticket(self, tensor.detach())  # a result that its own operation saves would keep itself alive

    def count(self, tensor: torch.Tensor, change: int) -> None:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in self.weights:
            return
        before = self.holders.get(place, 0)
        self.holders[place] = before + change
        if before == 0 or before + change == 0:
            self.alive += change * storage.nbytes()
            self.peak = max(self.peak, self.alive)


class Ticket:
    """What autograd keeps in the place of a tensor; it dies when autograd lets go."""

    def __init__(self, held: Held, tensor: torch.Tensor):
        self.held, self.tensor = held, tensor
        held.count(tensor, 1)

    def __del__(self):
        self.held.count(self.tensor, -1)


def test_memory_is_that_of_one_micro_batch():
    """One batch of 32 in 1, 2, 4 and 8 micro-batches: what is held falls as the micro-batch does. Beside the micro-batch there
    are its share of the loss (B x B similarities, B x D encodings and their projections), here a fiftieth of what the whole batch
    holds."""
    peaks = {count: peak_bytes(repeated(make_batch(0), 4), count) for count in (1, 2, 4, 8)}
    loss = peaks[1] / 50
    for count in (2, 4, 8):
        assert peaks[1] / count <= peaks[count] <= peaks[1] / count + loss, peaks


def test_memory_is_flat_in_the_number_of_micro_batches():
    """Micro-batches of 8 samples, 2 to 8 of them: only what the loss holds of all samples grows with the batch."""
    peaks = {count: peak_bytes(repeated(make_batch(0), count), count) for count in (2, 4, 8)}
    assert peaks[8] <= 1.25 * peaks[2], peaks


def test_each_micro_batch_is_encoded_once_where_no_samples_are_compared():
    """Four micro-batches of the classification: the encoder runs four times, and the gradients add up to those of the batch."""
    config = make_config(make_run())
    model = ImpForPreTraining(config)
    initialize_seeded(model, 0, config.initializer_range)
    batch, calls = make_batch(2), []
    model(batch)[0].backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.imp.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    output, last = MicroBatches(model, batch, 4).accumulate(lambda loss: loss.backward())
    last.backward()
    assert len(calls) == 4 and not output.loss.requires_grad
    torch.testing.assert_close(output.loss, model(batch)[0].detach())
    for name, gradient in whole.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6)


def repeated(batch: Batch, times: int) -> Batch:
    return batch.map(lambda x: torch.cat([x] * times))


def peak_bytes(batch: Batch, count: int) -> int:
    """The most that is held while a batch goes forward and backward in `count` micro-batches; 1: undivided."""
    config = make_config(make_run())
    model = ImpForPreTraining(config)
    initialize_seeded(model, 0, config.initializer_range)
    held = Held(model)
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda ticket: ticket.tensor):
        if count == 1:
            model(batch)[0].backward()
        else:
            parts = MicroBatches(model, batch, count)
            parts.forward()
            for loss in parts.losses():
                loss.backward()
                del loss
    assert held.alive == 0
    return held.peak


def test_what_draws_from_torchs_generator_draws_the_same_in_both_encodings():
    """A dropout of torch's own: without the same mask in both, the gradient would not be that of the loss."""
    model, seen = ImpForPreTraining(make_config(make_run())).train(), []

    def drop(norm, inputs, output):
        seen.append(F.dropout(output, 0.5))
        return seen[-1]

    model.imp.norm.register_forward_hook(drop)
    parts = MicroBatches(model, make_batch(0), 2)
    parts.forward()
    first, seen[:] = [value.clone() for value in seen], []
    for loss in parts.losses():
        loss.backward()
    assert len(first) == len(seen) == 4  # two modalities in two micro-batches
    assert all(torch.equal(before, after) for before, after in zip(first, seen))
    assert not torch.equal(first[0] == 0, first[2] == 0)
