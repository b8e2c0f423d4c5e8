"""Hardware profiles: what the file keeps and refuses, and that measuring gives figures of this machine."""

import json
import time

import profile_worker
import pytest
import torch

from helpers.ranks import run_ranks
from imp_ds.errors import UserError
from imp_ds.planning.hardware_profile import OPERATIONS, HardwareProfile, h200
from imp_ds.planning.measure.kernels import KernelTimer, bytes_per_second, measure_links, seconds_of
from imp_ds.train.matrix_peak import matrix_peak

CPU = torch.device("cpu")


def test_a_profile_is_read_as_it_was_written(tmp_path):
    h200().save(tmp_path / "profile.json")
    assert HardwareProfile.load(tmp_path / "profile.json") == h200()


def test_a_profile_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "profile.json"
    with pytest.raises(UserError, match="cannot be read"):
        HardwareProfile.load(path)
    path.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        HardwareProfile.load(path)
    data = h200().model_dump(mode="json")
    path.write_text(json.dumps(data | {"ranks": 0}))
    with pytest.raises(UserError, match="ranks"):
        HardwareProfile.load(path)
    del data["kernels"]["gelu"], data["engine"]["3"]
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="incomplete") as error:
        HardwareProfile.load(path)
    assert "gelu" in str(error.value) and "engine.3" in str(error.value)


def test_figures_of_the_h200_say_what_is_assumed():
    profile = h200()
    assert profile.kernels["product"].flops_at(768) == 780e12 and profile.kernels["copy"].bytes_per_s == 4.3e12
    assert len(profile.assumed) >= 5


def test_seconds_of_a_call_are_its_median():
    waits = iter([0.0, 0.0, 0.01, 0.2, 0.01])  # the first two do not count, and three are the least
    assert 0.009 < seconds_of(lambda: time.sleep(next(waits)), CPU, limit_s=0.0) < 0.1


def test_the_peak_is_what_a_product_reaches():
    a, b = torch.randn(2, 768, 768)
    peak, start = matrix_peak(CPU, torch.float32, limit_s=0.1), time.perf_counter()
    for _ in range(5):
        a @ b
    alone = 5 * 2 * 768**3 / (time.perf_counter() - start)
    assert 1e9 < peak < 1e13 and alone < 3 * peak  # another product of the same kind is not beyond it; the bounds are for noise


def test_a_difference_hidden_by_noise_is_not_taken_for_endless_speed():
    assert bytes_per_second(300.0, short=1.0, long=2.5) == 200.0
    # 0.02 * 2 s for 100 bytes
    assert bytes_per_second(100.0, short=2.1, long=2.0) == bytes_per_second(100.0, short=2.0, long=2.0) == 2500.0


def test_every_kind_of_kernel_is_measured(monkeypatch):
    """With products of one width and few repetitions; the whole takes a minute."""
    monkeypatch.setattr("imp_ds.planning.measure.kernels.WIDTHS", (64,))
    short = lambda function, device: seconds_of(function, device, 0.01)  # noqa: E731
    monkeypatch.setattr("imp_ds.planning.measure.kernels.seconds_of", short)
    found = KernelTimer(CPU, torch.float32).kernel_rates()
    assert found.keys() == h200().kernels.keys()
    assert found["product"].flops_per_s.keys() == found["experts"].flops_per_s.keys() == {64}
    for rate in found.values():
        assert 1e7 < rate.bytes_per_s < 1e13 and rate.overhead_s < 0.1
        assert all(1e8 < flops < 1e13 for flops in rate.flops_per_s.values())
    assert measure_links(CPU) == {}  # one rank has none


@pytest.mark.distributed
def test_two_ranks_measure_links_and_engine_together(tmp_path):
    out = tmp_path / "found.json"
    run_ranks(profile_worker.measure_all, str(out), ranks=2, folder=tmp_path, limit_s=200)
    found = json.loads(out.read_text())
    assert found["links"].keys() == set(OPERATIONS)
    assert all(1e5 < link["bytes_per_s"] < 1e12 and link["latency_s"] < 1 for link in found["links"].values())
    most, least = found["calls"]
    assert most == -least >= 5  # two that do not count, and at least three that do
    assert all(0 <= rate["owned_s"] < 1e-6 and rate["tensor_s"] < 0.1 for rate in found["engine"].values())
    assert found["peak"] > 1e9
