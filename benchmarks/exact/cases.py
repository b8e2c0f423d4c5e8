"""The runs of the exactness matrix: which there are, what each trains, and which of them are refused.

All are the small run of the tests (three alternating tasks, four experts, a batch of 16 samples in routing groups of two), so
that the global batch and the groups are the same on any number of ranks.
"""

from dataclasses import dataclass, replace

import torch

from helpers.small_run import ORDER, SIZES
from helpers.small_run import make_batch as small_batch
from helpers.small_run import make_run as small_run
from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.randomness import sample_keys
from imp_ds.tasks import Batch
from imp_ds.train.engine import ds_config

STEPS = 20
BATCH = 16
RATE = 1e-3
CLIP = 0.1  # every gradient of these tasks exceeds it
ROUTERS = {
    "expert choice": {},
    "top-1 with capacity": dict(router="top_k", experts_per_token=1, capacity_factor=1.25),
    "top-2 with capacity": dict(router="top_k", experts_per_token=2),
    "top-2 drop-free": dict(router="top_k", experts_per_token=2, drop_tokens=False),
}
RANDOM = dict(hidden_dropout=0.1, router_noise=1.0)
AGAINST_FLOAT32 = "against float32"
FROZEN = {  # what is still trained
    "frozen experts": ["imp.embeddings.*", "imp.pre_encoder.*", "imp.blocks.0.*", "imp.blocks.*attention*", "*.router.weight",
                       "imp.post_encoder.*", "imp.projections.*", "objectives.*"],
    "all but experts frozen": ["*.experts.*"],
    "frozen beside experts": ["*.experts.w1", "*norm*", "imp.post_encoder.*", "objectives.*.head.*"],
}  # fmt: skip
VARIANTS = ("micro-batches 2", "micro-batches 4", "checkpointing", "compile", "dropout and noise", *FROZEN, AGAINST_FLOAT32)


@dataclass(frozen=True)
class Case:
    """One run. `clip` 0 is off; `variant` is "" or one of VARIANTS; `steps` of three tasks in turn."""

    router: str
    ranks: int
    ep_size: int
    stage: int
    offload: bool = False
    bf16: bool = False
    clip: float = CLIP
    variant: str = ""
    steps: int = STEPS

    @property
    def micro_batches(self) -> int:
        return int(self.variant.split()[1]) if self.variant.startswith("micro-batches") else 1

    @property
    def random(self) -> bool:
        return self.variant == "dropout and noise"

    @property
    def reference(self) -> "Case":
        """The run of one process that it has to equal: without DeepSpeed in float32, at ZeRO 1 in bfloat16."""
        bf16 = self.bf16 and self.variant != AGAINST_FLOAT32
        kept = self.variant if self.random or self.variant in FROZEN else ""
        return replace(self, ranks=1, ep_size=1, stage=1 if bf16 else 0, offload=False, bf16=bf16, variant=kept)

    def __str__(self) -> str:
        layout = f"{self.ranks} rank{'s' * (self.ranks > 1)}, ep {self.ep_size}, ZeRO {self.stage}{' offload' * self.offload}"
        precision = "bfloat16" if self.bf16 else "float32"
        clip, steps = "" if self.clip else "no clip", "" if self.steps == STEPS else f"{self.steps} steps"
        return ", ".join(filter(None, [self.router, layout, precision, clip, self.variant, steps]))


def matrix(ranks: int) -> list[Case]:
    """Every combination on that many ranks. What ZeRO 0 refuses to clip follows once more without."""
    combinations = [
        Case(router, ranks, ep_size, stage, offload, bf16)
        for router in ROUTERS for bf16 in (False, True) for ep_size in (1, 2, 4) if ranks % ep_size == 0
        for stage in range(4) for offload in (False, True)
    ]  # fmt: skip
    return combinations + [replace(case, clip=0.0) for case in combinations if case.stage == 0]


def variants(ranks: int) -> list[Case]:
    """What must change nothing, for a router of even and one of uneven exchange, with the experts spread as far as they go."""
    cases = [
        Case(router, ranks, ranks, stage, variant=variant)
        for router in ("expert choice", "top-2 drop-free") for variant in VARIANTS for stage in (2, 3)
        if variant != AGAINST_FLOAT32
    ]  # fmt: skip
    cases += [frozen(variant, ranks, ranks, stage) for variant in FROZEN for stage in (0, 1)]
    if ranks == 1:
        cases += [Case(router, 1, 1, 2, bf16=True, variant=AGAINST_FLOAT32) for router in ROUTERS]
    # a compiler takes minutes, and nothing that it compiles depends on the stage
    return [case for case in cases if case.variant != "compile" or (case.stage == 2 and ranks < 4)]


def frozen(variant: str, ranks: int, ep_size: int, stage: int, steps: int = STEPS) -> Case:
    """A run that trains a part; at ZeRO 0 without clipping, which is refused there."""
    router = list(ROUTERS)[list(FROZEN).index(variant)]
    return Case(router, ranks, ep_size, stage, clip=CLIP if stage else 0.0, variant=variant, steps=steps)


def quick(cases: list[Case]) -> list[Case]:
    """A tenth of them, without a compiler: experts spread as far as they go, two routers, one stage of a variant."""
    routers = ("expert choice", "top-2 drop-free")
    kept = [case for case in cases if case.router in routers and case.ep_size == case.ranks and case.ranks < 4]
    return [case for case in kept if (case.stage == 3 if case.variant else case.offload == (case.stage == 2))]


def make_run(case: Case) -> RunConfig:
    model = dict(group_examples=2, **ROUTERS[case.router], **(RANDOM if case.random else {}))
    run = small_run(ep_size=case.ep_size, clip=case.clip, **model)
    for task in run.tasks:
        task.batch_size, task.micro_batches = BATCH, case.micro_batches
    run.train.trainable = FROZEN.get(case.variant)
    return run


def make_batch(step: int, case: Case) -> Batch:
    """The global batch of a step, the same on every rank."""
    # steps three apart are of the same task
    parts = [small_batch(step + 3 * STEPS * i) for i in range(BATCH // SIZES[ORDER[step % 3]])]
    inputs = {
        modality: {name: torch.cat([part.inputs[modality][name] for part in parts]) for name in tensors}
        for modality, tensors in parts[0].inputs.items()
    }
    for tensors in inputs.values():
        for name in tensors.keys() & {"pixel_positions", "feature_positions"}:
            tensors[name].mul_(0.999)  # drawn at random, and closer to 1 than a grid's last place ever is
    keys = sample_keys(0, step, 0, BATCH) if case.random else None
    return Batch(parts[0].task, inputs, {"label": torch.cat([part.targets["label"] for part in parts])}, keys)


def engine_settings(case: Case) -> dict:
    """DeepSpeed's configuration, before the run's own values are written into it."""
    zero = {"stage": case.stage}
    if case.stage == 3:
        zero["stage3_param_persistence_threshold"] = 64  # norms stay unsharded, all else is partitioned
    ds = {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}, "zero_optimization": zero}
    if case.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
        ds["zero_force_ds_cpu_optimizer"] = False
    if case.bf16:
        ds["bf16"] = {"enabled": True}
        if case.stage > 1:  # at ZeRO 1 DeepSpeed would take another optimizer, which knows no norm that can be judged
            ds["data_types"] = {"grad_accum_dtype": "fp32"}
    return ds


def refusal(case: Case) -> str | None:
    """Why the run would not start, in the words of the one who started it; None when it does."""
    try:
        ds_config.resolve(engine_settings(case), make_run(case), case.ranks)
    except UserError as error:
        return str(error)
    return None
