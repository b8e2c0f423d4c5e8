"""Model FLOPs of captioning, whose words are all found in one pass, are those that torch counts in a real step."""


import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers.caption_run import LENGTH, SIZE, caption_batch, caption_run
from helpers.small_run import VOCABULARY, make_config, make_run
from imp_ds.families.imp.costs.flops import step_flops
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.objectives import StepShape


@pytest.mark.parametrize("model", [dict(num_experts=0), dict(gate="modality")], ids=["dense", "modality"])
def test_flops_are_those_that_torch_counts(model):
    run, task = make_run(**model), caption_run("attribute").task("captions")
    run.tasks = [task]
    config = make_config(run)
    net = ImpForPreTraining(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(caption_batch(0))[0].backward()
    assert step_flops(task, config, run.data, world=1) == counter.get_total_flops() > 1e6


def test_the_scores_of_all_words_are_held_for_every_query():
    run = caption_run("attribute")
    shape = StepShape(make_config(run), SIZE, SIZE, {"vision": 4, "text": LENGTH}, {"vocabulary": VOCABULARY}, 4)
    assert run.task("captions").objectives[0].loss_values(shape) == 3 * SIZE * LENGTH * VOCABULARY
