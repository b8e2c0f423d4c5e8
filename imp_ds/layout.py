"""What cannot be right is refused here, before anything is allocated: the run against its ranks and DeepSpeed's settings.

The facts behind it were found by running DeepSpeed 0.19.8; each refusal says which.
"""

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.tokens import task_tokens


def check_layout(run: RunConfig, world_size: int, ds: dict) -> None:
    """Raise UserError unless `run` can train on `world_size` ranks under the DeepSpeed configuration `ds`."""
    config = run.model.to_config(run.data.vocab_size, run.tasks)
    for task in run.tasks:
        task_tokens(task, config, run.data.audio)
    if run.train.schedule == "sampling" and not any(task.weight for task in run.tasks):
        raise UserError("no task has a weight to be sampled by", got="all tasks have weight 0", fix="--set tasks.NAME.weight=1")
    _check_experts(run, world_size, config.num_experts)
    _check_batches(run, world_size, config.group_examples if config.num_experts else None)
    _check_engine(run, ds, bool(config.num_experts))


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


def _check_batches(run: RunConfig, world_size: int, group_examples: int | None) -> None:
    """Every rank takes equally many samples, and whole groups where they have a size: so ranks do not change the results."""
    share = world_size * (group_examples or 1)
    for task in run.tasks:
        if task.batch_size % share:
            ranks = f"{world_size} ranks" + (
                f" with routing groups of {group_examples} examples" if (group_examples or 1) > 1 else ""
            )
            up = -(-task.batch_size // share) * share
            raise UserError(
                f"task {task.name}: the batch cannot be shared out equally", got=f"batch_size {task.batch_size} over {ranks}",
                allowed=f"multiples of {share}", fix=f"--set tasks.{task.name}.batch_size={up}",
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


def _check_foreign_sections(ds: dict) -> None:
    refused = {
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
