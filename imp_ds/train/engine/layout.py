"""What cannot be right is refused here, before anything is allocated: the run against its ranks and DeepSpeed's settings.

The facts behind it were found by running DeepSpeed 0.19.8; each refusal names which.
"""

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.families import family_of


def check_layout(run: RunConfig, world_size: int, ds: dict) -> None:
    """Raise UserError unless `run` can train on `world_size` ranks under the DeepSpeed configuration `ds`."""
    family = family_of(run)
    config = family.config(run)
    if run.train.schedule != "rotation" and not any(task.weight for task in run.tasks):
        raise UserError("no task has a weight to be sampled by", got="all tasks have weight 0", fix="--set tasks.NAME.weight=1")
    experts = family.experts(config)
    _check_experts(run, world_size, experts)
    _check_batches(run, world_size)
    family.check(run, config, world_size)
    _check_engine(run, ds, bool(experts))
    _check_steps(run, ds)


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _check_experts(run: RunConfig, world_size: int, experts: int) -> None:
    ep_size = run.train.ep_size
    if ep_size > 1 and not experts:
        raise UserError(
            "expert parallelism without experts", got=f"train.ep_size = {ep_size}, model.num_experts = 0",
            allowed="train.ep_size = 1 for a dense model", fix="--set train.ep_size=1, or --set model.num_experts=N",
        )  # fmt: skip
    if experts and experts % ep_size:
        raise UserError(
            "the experts cannot be shared out equally", got=f"{experts} experts over train.ep_size = {ep_size} ranks",
            allowed=f"ep_size that divides {experts}: {_divisors(experts)}",
            fix="--set train.ep_size=N or --set model.num_experts=N",
        )  # fmt: skip
    if world_size % ep_size:
        raise UserError(
            "the ranks cannot be cut into expert groups", got=f"{world_size} ranks, train.ep_size = {ep_size}",
            allowed=f"ep_size that divides {world_size}: {_divisors(world_size)}",
            fix="--set train.ep_size=N, or start another number of ranks",
        )  # fmt: skip


def _check_batches(run: RunConfig, world_size: int) -> None:
    """Every rank takes equally many samples, in equal micro-batches."""
    for task in run.tasks:
        share = world_size * task.micro_batches
        if task.batch_size % share:
            parts = f"{world_size} ranks" + (f" in {task.micro_batches} micro-batches each" if task.micro_batches > 1 else "")
            raise UserError(
                f"task {task.name}: the batch cannot be shared out equally", got=f"batch_size {task.batch_size} over {parts}",
                allowed=f"multiples of {share}", fix=f"--set tasks.{task.name}.batch_size={-(-task.batch_size // share) * share}",
            )  # fmt: skip


def _check_engine(run: RunConfig, ds: dict, experts: bool) -> None:
    """Settings of DeepSpeed that train wrongly, often in silence, with this trainer."""
    zero = ds.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UserError("unknown ZeRO stage", got=stage, allowed="0, 1, 2, 3", fix="correct zero_optimization.stage")
    if experts and stage == 0 and run.optimizer.clip:
        raise UserError(
            "ZeRO 0 with experts clips by a wrong gradient norm: DeepSpeed averages the norms of the ranks' own experts",
            got=f"zero_optimization.stage = 0, optimizer.clip = {run.optimizer.clip}",
            allowed="ZeRO 1, 2 or 3 with clipping, or ZeRO 0 without",
            fix="--deepspeed_config with stage 1, 2 or 3, or --set optimizer.clip=0",
        )
    if run.train.compile and stage == 3:
        raise UserError(
            "compiled blocks at ZeRO 3: it gathers weights by hooks on every layer, which cut a block into a graph for each",
            got="train.compile = true, zero_optimization.stage = 3", allowed="ZeRO 0, 1 or 2 with train.compile",
            fix="--set train.compile=false, or --deepspeed_config with stage 1 or 2",
        )  # fmt: skip
    bf16 = ds.get("bf16", {})
    if bf16.get("enabled", False) and stage == 0:
        raise UserError(
            "bfloat16 at ZeRO 0 clips by a wrong gradient norm, and keeps its float32 weights out of reach of checkpoints",
            got="bf16.enabled = true, zero_optimization.stage = 0", allowed="ZeRO 1, 2 or 3 with bf16",
            fix="--deepspeed_config with stage 1: on one rank it costs the same",
        )  # fmt: skip
    if stage == 0 and (zero.get("offload_optimizer") or {}).get("device", "none") != "none":
        raise UserError(
            "ZeRO 0 has no offload: DeepSpeed would ignore it", got="zero_optimization.stage = 0, offload_optimizer",
            allowed="ZeRO 1, 2 or 3 with offload_optimizer", fix="delete offload_optimizer, or use stage 1, 2 or 3",
        )  # fmt: skip
    if bf16.get("enabled", False) and stage == 1 and ds.get("data_types", {}).get("grad_accum_dtype") == "fp32":
        raise UserError(
            "ZeRO 1 that adds up bfloat16 gradients in float32 is another optimizer of DeepSpeed's, which cannot skip a bad step",
            got='zero_optimization.stage = 1, data_types.grad_accum_dtype = "fp32"', allowed="ZeRO 2 with it, or ZeRO 1 without",
            fix='delete data_types, or write "stage": 2, which needs less memory',
        )  # fmt: skip
    if bf16.get("check_grad_overflow", True) is False:
        raise UserError(
            "steps with a bad gradient could not be skipped", got="bf16.check_grad_overflow = false", allowed="true",
            fix="delete the key",
        )  # fmt: skip
    if ds.get("fp16", {}).get("enabled", False):
        raise UserError(
            "float16 is not supported: its loss scaling skips steps, and tasks would lose their turns",
            got="fp16.enabled = true", allowed="bf16 or float32", fix='write "bf16": {"enabled": true} instead',
        )  # fmt: skip
    for key in ("contiguous_gradients", "reduce_scatter"):
        if experts and stage == 2 and zero.get(key) is False:
            raise UserError(
                f"ZeRO 2 with experts needs {key}", got=f"zero_optimization.{key} = false", allowed="true", fix="delete the key"
            )
    _check_foreign_sections(ds)


def _check_steps(run: RunConfig, ds: dict) -> None:
    """What is done with the gradients of a step, and beside it."""
    stage, mixed = ds.get("zero_optimization", {}).get("stage", 0), "train.schedule = sampling_per_rank"
    if run.train.mixed and stage == 3:
        raise UserError(
            "ranks that train different tasks at ZeRO 3, where all of them gather the weights of the same layer at a time",
            got=f"{mixed}, zero_optimization.stage = 3", allowed="ZeRO 0, 1 or 2, or train.schedule = sampling",
            fix="--deepspeed_config with stage 1 or 2, or --set train.schedule=sampling",
        )  # fmt: skip
    if run.optimizer.task_normalisation and run.optimizer.clip:
        raise UserError(
            "clipping beside task normalisation, which gives gradients their norm", got=f"optimizer.clip = {run.optimizer.clip}",
            allowed="one of the two", fix="--set optimizer.clip=0, or --set optimizer.task_normalisation=false",
        )  # fmt: skip
    if run.optimizer.task_normalisation and run.train.mixed and run.train.ep_size > 1:
        raise UserError(
            "task normalisation where groups of ranks draw tasks: no group knows its gradient before all ranks are averaged",
            got=f"optimizer.task_normalisation, {mixed}, train.ep_size = {run.train.ep_size}",
            allowed="train.ep_size = 1, or a schedule that is the same on all ranks",
            fix="--set train.ep_size=1, or --set train.schedule=sampling",
        )  # fmt: skip
    every = run.train.interference_every
    if every and stage == 3:
        raise UserError(
            "interference cannot be measured in training at ZeRO 3, where no rank has a full weight",
            got=f"train.interference_every = {every}, zero_optimization.stage = 3", allowed="ZeRO 0, 1 or 2",
            fix="--set train.interference_every=0, and measure the checkpoints: imp_ds interference RUN",
        )  # fmt: skip
    if every and len(run.tasks) < 2:
        raise UserError(
            "interference is between tasks", got=f"train.interference_every = {every}, one task", allowed="two or more tasks",
            fix="--set train.interference_every=0",
        )  # fmt: skip


def _check_foreign_sections(ds: dict) -> None:
    refused = {  # `ds_keys.REFUSED_BY_LAYOUT` leaves them to us
        "scheduler": ("the run's configuration owns the learning rate", "delete it and set optimizer.* with --set"),
        "elasticity": ("DeepSpeed 0.19 has no elasticity any more", "delete it; a checkpoint can be resumed on other ranks"),
        "torch_autocast": ("similarities and routing must stay in float32", 'delete it and write "bf16": {"enabled": true}'),
        "expert_parallel": ("the experts are spread by this trainer, not by AutoEP", "delete it and use --set train.ep_size=N"),
    }
    for section, (why, fix) in refused.items():
        if section in ds:
            raise UserError(f"the DeepSpeed configuration may not hold {section}: {why}", got=section, fix=fix)
    if ds.get("gradient_allreduce_op", "mean") != "mean":
        raise UserError(
            "gradients must be averaged over ranks", got=f"gradient_allreduce_op = {ds['gradient_allreduce_op']}", allowed="mean"
        )
