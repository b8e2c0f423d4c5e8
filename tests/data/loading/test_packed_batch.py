"""Batches on their way between processes: one piece of shared memory, out of which comes what was put in."""

import pickle

import torch

from imp_ds.data.loading.packed_batch import pack
from imp_ds.tasks import Batch, BatchReport


def make_batch(key_B=torch.tensor([5, -6, 7])) -> Batch:
    pixels = torch.arange(3 * 5 * 7, dtype=torch.uint8).reshape(3, 5, 7)
    inputs = {
        "vision": {"pixel_values": pixels, "pixel_positions": torch.rand(3, 5, 3)},
        "audio": {"input_features": torch.randn(5, 3, 4).half().transpose(0, 1)},  # not contiguous
        "text": {"input_ids": torch.tensor([[1, 2], [3, 4], [5, 6]]), "attention_mask": torch.empty(3, 0, dtype=torch.bool)},
    }
    targets = {"label": torch.tensor([1, 2, 3]), "valid": torch.tensor([True, False, True])}
    return Batch("some", inputs, targets, key_B, BatchReport(view=2, keys=("a", "b", "c")))


def tensors(batch: Batch) -> dict:
    found = {(modality, name): tensor for modality, inputs in batch.inputs.items() for name, tensor in inputs.items()}
    return found | {name: tensor for name, tensor in batch.targets.items()} | {"key": batch.key_B}


def test_what_is_unpacked_is_what_was_packed():
    batch = make_batch()
    found = pack(batch).unpack()
    assert (found.task, found.report) == (batch.task, batch.report)
    assert tensors(found).keys() == tensors(batch).keys()
    for name, tensor in tensors(batch).items():
        other = tensors(found)[name]
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape) and torch.equal(other, tensor), name
    assert pack(make_batch(None)).unpack().key_B is None


def test_it_is_one_piece_of_shared_memory():
    packed = pack(make_batch())
    assert packed.data.is_shared() and packed.data.dtype == torch.uint8
    for name, tensor in tensors(packed.unpack()).items():
        assert tensor.untyped_storage().data_ptr() == packed.data.untyped_storage().data_ptr(), name
        assert tensor.is_contiguous() and (tensor.numel() == 0 or tensor.data_ptr() % 64 == 0), name
    assert not any(tensor.is_shared() for tensor in tensors(make_batch()).values())  # nothing else is


def test_changing_the_packed_batch_leaves_the_original_alone():
    batch = make_batch()
    packed = pack(batch)
    packed.data.zero_()
    assert batch.targets["label"].tolist() == [1, 2, 3]
    assert pickle.loads(pickle.dumps(packed)).unpack().targets["label"].tolist() == [0, 0, 0]
