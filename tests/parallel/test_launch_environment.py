"""The five variables that place a process among the ranks, as every launcher leaves them; on dictionaries, not on ours."""

import socket

import pytest

from imp_ds.errors import UserError
from imp_ds.parallel.launch import NAMES, first_host, free_port, init_environment

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[017-018]",
}  # fmt: skip


def initialized(environ: dict[str, str]) -> tuple[int, dict[str, str]]:
    """The world size, and the five variables afterwards."""
    environ = dict(environ)
    return init_environment(environ), {name: environ[name] for name in NAMES}


def test_torchrun_deepspeed_and_accelerate_are_believed():
    assert initialized(TORCHRUN) == (8, TORCHRUN)


def test_a_launcher_of_one_rank_a_node_may_leave_local_rank_out():
    without = {name: value for name, value in TORCHRUN.items() if name != "LOCAL_RANK"}
    assert initialized(without) == (8, {**TORCHRUN, "LOCAL_RANK": "0"})


def test_a_plain_process_is_a_world_of_one():
    world, found = initialized({})
    assert world == 1 and 1024 <= int(found.pop("MASTER_PORT")) < 65536
    assert found == {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


def test_srun_is_translated():
    # port: 20000 + 1234567 % 20000 = 20000 + 14567
    expected = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu017", "MASTER_PORT": "34567"}
    assert initialized(SRUN) == (8, expected)


def test_all_ranks_of_a_step_agree_on_where_to_meet():
    found = [initialized({**SRUN, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 4)})[1] for rank in range(8)]
    assert len({(place["MASTER_ADDR"], place["MASTER_PORT"]) for place in found}) == 1
    assert [place["RANK"] for place in found] == [str(rank) for rank in range(8)]


def test_two_jobs_on_one_node_meet_at_different_ports():
    ports = {initialized({**SRUN, "SLURM_JOB_ID": str(1234567 + i)})[1]["MASTER_PORT"] for i in range(10)}
    assert len(ports) == 10 and all(1024 <= int(port) < 65536 for port in ports)


def test_an_address_that_was_set_by_hand_is_kept_under_srun():
    _, found = initialized({**SRUN, "MASTER_ADDR": "fast0", "MASTER_PORT": "4000"})
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("fast0", "4000")


def test_a_launcher_inside_a_slurm_job_has_the_last_word():
    assert initialized({**SRUN, **TORCHRUN}) == (8, TORCHRUN)


def test_a_plain_process_in_a_batch_script_is_alone():
    """sbatch sets most of Slurm's variables in the script itself, but no step: it is not one of eight tasks."""
    script = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
    world, found = initialized({**script, "SLURM_PROCID": "0"})
    assert world == 1 and found["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize("lost", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_half_a_place_is_refused(lost):
    with pytest.raises(UserError, match=f"(?s)without a place.*{lost} not set.*RANK, WORLD_SIZE"):
        init_environment({name: value for name, value in TORCHRUN.items() if name != lost})


def test_an_empty_value_is_no_value():
    with pytest.raises(UserError, match="MASTER_ADDR not set"):
        init_environment({**TORCHRUN, "MASTER_ADDR": ""})


@pytest.mark.parametrize(
    "nodelist, host",
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("node[003-010,12],other", "node003"),
        ("node[5,7-9]", "node5"),
        ("n-1.cluster.org,n-2.cluster.org", "n-1.cluster.org"),
        ("gpu-a[01-04]", "gpu-a01"),
    ],
)
def test_the_first_host_of_a_node_list(nodelist, host):
    assert first_host(nodelist) == host


@pytest.mark.parametrize("nodelist", ["", "[1-2]", ","])
def test_a_node_list_without_a_host_is_refused(nodelist):
    with pytest.raises(UserError, match="names no host"):
        first_host(nodelist)


def test_a_free_port_can_be_bound():
    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))
