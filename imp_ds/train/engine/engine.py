"""One optimizer step of one task on DeepSpeed, right for tasks that alternate.

Parameters of the other tasks get no gradient in a step. The reference (one AdamW over everything, gradients of zero)
lets their moments decay, residual momentum move them and weight decay act; DeepSpeed agrees only where it is made to:
ZeRO 3 and every optimizer offload keep the last gradient of such a parameter in a buffer and would apply it again.

Where ranks train different tasks in one step, each takes its own gradient aside first, and hands all of it, zeros included, to
DeepSpeed in one order, which is that of all ranks: as it comes from a backward pass, it would be reduced with that of other
parameters (ZeRO 2 in silence; 1 aborts). ZeRO 3 gathers weights in the forward already, and cannot do it.
"""

import datetime
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.utils import combine_grad_norm_groups
from deepspeed.utils import groups as deepspeed_groups

from imp_ds.families.arrival import give_back_memory
from imp_ds.families.train_module import StepOutput, TrainModule
from imp_ds.families.trainable import check_trains
from imp_ds.moe.routers.router import Router
from imp_ds.parallel.expert_parallel import ExpertParallelLayer, experts_may_be_frozen, split_off_experts
from imp_ds.parallel.groups import alone, world_size
from imp_ds.parallel.launch import init_environment
from imp_ds.parallel.roll_call import roll_call
from imp_ds.tasks import Batch
from imp_ds.train.engine import master_state
from imp_ds.train.engine.micro_batches import MicroBatches, split
from imp_ds.train.engine.surrogate_loss import own_gradients, rescale_to_norm, surrogate_loss
from imp_ds.train.engine.weight_average import WeightAverage


def start_process_group(timeout_s: float = 1800.0, start_timeout_s: float = 1800.0) -> torch.device:
    """Join the other ranks, whatever launched us, and return this rank's device.

    timeout_s: of the collectives. Raises UserError, naming them, when some ranks have not started within start_timeout_s.
    """
    init_environment()
    # DeepSpeed 0.19.8 calls collectives by names that torch 2.13 has replaced: nothing that a user can mend
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # compiled at the first start otherwise (half a minute and a compiler), and used by inference kernels alone
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    held = roll_call(start_timeout_s)
    deepspeed.init_distributed(verbose=False, timeout=datetime.timedelta(seconds=timeout_s))
    del held
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def process_group(timeout_s: float = 1800.0, start_timeout_s: float = 1800.0) -> Iterator[torch.device]:
    """`start_process_group`, and the end of the group that it made, also where all ranks end by the same exception. One that is a
    rank's own leaves it: to destroy it would wait for the others."""
    made = not dist.is_initialized()
    device = start_process_group(timeout_s, start_timeout_s)
    try:
        yield device
    except Exception as error:
        if made and (world_size() == 1 or getattr(error, "shared", False)):
            dist.destroy_process_group()
        raise
    if made:
        dist.destroy_process_group()


def parameter_groups(model: TrainModule, weight_decay: float) -> list[dict]:
    """Two groups: weight decay acts on what the model names, matrices that multiply ("kernels"). Frozen parameters are in
    none; one that modules share is what the first of them says."""
    kernels, others, seen = [], [], set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            (kernels if model.decays(module, name) else others).append(parameter)
    groups = [
        {"params": kernels, "name": "kernels", "weight_decay": weight_decay},
        {"params": others, "name": "others", "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Engine:
    """The DeepSpeed engine of a model, one task a step and rank.

    The gradient of a step is that of sum(loss * weight) / sum(weight) over its micro-batches and ranks.

    mixed: whether ranks may train different tasks in one step, but for those that share experts. Then the step's gradient is the
    mean of the ranks' own, each of which is held in full, and no rank's samples are compared with another's.
    ema: the decay of an average of the weights that is kept as `average`; None: none is kept.
    """

    def __init__(
        self, model: TrainModule, ds: dict, *, weight_decay: float, device: torch.device, mixed: bool = False,
        ema: float | None = None,
    ):  # fmt: skip
        self.device, self.mixed = device, mixed
        groups = split_off_experts(parameter_groups(model, weight_decay))
        with experts_may_be_frozen():
            self.deepspeed, _, _, _ = deepspeed.initialize(model=model, model_parameters=groups, config=ds)
        give_back_memory()  # where parameters lay before they were put into their groups, before moments are made
        self.stage = self.deepspeed.zero_optimization_stage()
        if self.stage > 0:
            self._judge_within_step()
            self._rescale_within_step()
        self._counting = [module for module in model.modules() if isinstance(module, Router) and module.counts() is not None]
        self.ep_size = next((m.ep_size for m in model.modules() if isinstance(m, ExpertParallelLayer)), 1)
        self.average = None
        master_state.prepare(self, adam_steps=0)
        if ema is not None:
            self.average = WeightAverage(self, ema)

    @property
    def model(self) -> TrainModule:
        return self.deepspeed.module

    def forward(self, batch: Batch, micro_batches: int = 1) -> StepOutput:
        """Loss (this rank's share, detached), metrics and router reports of one task's batch. It is split into
        `micro_batches` equal parts, one in memory at a time. `update` or `skip` has to follow."""
        self._batch, self._accumulated = batch, False
        with self._own_world():
            # a loss that comes from DeepSpeed's engine is reduced in its backward pass
            module = self.model if self.mixed else self.deepspeed
            if micro_batches > 1:
                return self._forward_each(MicroBatches(module, batch, micro_batches, self._shares(split(batch, micro_batches))))
            loss, metrics, reports = module(batch)
            if shares := self._shares([batch]):
                loss = loss * shares[0]
            self._losses, self._count = iter([loss]), 1
            return StepOutput(loss.detach(), metrics, reports)

    def measure(self, batch: Batch, micro_batches: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of one task's batch on this rank, as `forward` has it, and what it weighs in the mean over ranks and batches,
        two scalars. Nothing goes backward after it. Samples are compared with those of all ranks."""
        parts = split(batch, micro_batches)
        differ = self.model.weights_differ(batch)
        one = torch.ones((), device=self.device)
        weights = torch.stack([self.model.weight(part).float() for part in parts] if differ else [one])
        if micro_batches == 1:
            return self.model(batch).loss.detach(), weights.sum()
        shares = list((weights / weights.mean().clamp(min=torch.finfo(weights.dtype).tiny)).unbind()) if differ else None
        return MicroBatches(self.model, batch, micro_batches, shares).forward().loss.detach(), weights.sum()

    def _forward_each(self, parts: MicroBatches) -> StepOutput:
        """Each micro-batch forward and backward in its turn; but where samples are compared, and where each rank takes its own
        gradient aside, all go forward before any goes backward."""
        if self.mixed or self.model.compares_samples(self._batch.task):
            output = parts.forward()
            self._losses, self._count = parts.losses(), parts.count
            return output
        output, last = parts.accumulate(lambda loss: self._backward(loss, is_last=False))
        self._losses, self._count, self._accumulated = iter([last]), 1, True
        return output

    def _backward(self, loss: torch.Tensor, is_last: bool) -> None:
        check_trains(loss, self._batch)
        self.deepspeed.set_gradient_accumulation_boundary(is_last)
        self.deepspeed.backward(loss)

    def _shares(self, parts: list[Batch]) -> list[torch.Tensor] | None:
        """What each micro-batch's loss counts in the mean over ranks and micro-batches: its weight over the mean of all weights;
        None where all weigh the same. All ranks call it."""
        if not self.model.weights_differ(parts[0]):
            return None
        weights = torch.stack([self.model.weight(part).float() for part in parts])
        total = weights.sum()
        if world_size() > 1:
            dist.all_reduce(total)
        mean = total / (len(parts) * world_size())
        return list((weights / mean.clamp(min=torch.finfo(mean.dtype).tiny)).unbind())

    def _own_world(self):
        """Where ranks train different tasks, objectives compare a rank's samples among themselves (as the release does then)."""
        return alone() if self.mixed else nullcontext()

    def update(
        self, learning_rate: float, accept: Callable[[float], bool] = math.isfinite, target_norm: float | None = None
    ) -> tuple[float, bool]:
        """Backward, and one optimizer step unless `accept(gradient norm)` is false; it is called once, and must agree on
        every rank.

        target_norm: the norm that the gradient is rescaled to (Uni-Perceiver v2, arXiv 2211.09808, task-balanced gradient
        normalisation); where ranks train different tasks that of each rank, before the mean over them; None: as it is. Not with
        clipping.

        Returns the norm of the gradient over all ranks, before rescaling and clipping, but where ranks train different
        tasks that of the mean; and whether the step was taken.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        self._target_norm = None if self.mixed else target_norm
        losses, count = ([self._mixed_loss(target_norm)], 1) if self.mixed else (self._losses, self._count)
        for i, loss in enumerate(losses):
            self._backward(loss, is_last=i == count - 1)
        self._accept = accept
        if self.stage == 0:
            self._step_unpartitioned()
        else:
            self.deepspeed.step()
        self._clear_stale_gradients()
        if self._accepted and self.average is not None:
            self.average.update()
        finish_counts(self._counting, self._accepted)
        return self._norm, self._accepted

    def skip(self) -> None:
        """Forget the batch of the last `forward`."""
        if self._accumulated:  # gradients that are there already are discarded as those of a step that is not accepted
            self.update(0.0, accept=lambda norm: False)
        else:
            finish_counts(self._counting, taken=False)
        self._losses = self._batch = None

    def _mixed_loss(self, target_norm: float | None) -> torch.Tensor:
        """One loss whose gradient is this rank's, of all parameters in their order."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        with self._own_world():
            gradients = own_gradients(self._losses, parameters)
        if target_norm is not None:
            rescale_to_norm(gradients, target_norm)
        # from inside a forward of the engine, which prepares the reduction
        return self.deepspeed(self._batch, lambda model, batch: surrogate_loss(parameters, gradients))

    def _judge(self, norm: float) -> bool:
        self._norm, self._accepted = norm, self._accept(norm)
        return self._accepted

    def _judge_within_step(self) -> None:
        """ZeRO 1 to 3 know the norm inside their step alone; there the step is discarded as they discard an invalid norm, by
        the sentinel -1 (0.19.8)."""
        zero = self.deepspeed.optimizer
        # it would log of every skipped step that its gradients are not finite; the trainer logs the reason
        zero.loss_scaler.update_scale = lambda overflow: None
        if self.stage == 3:
            norms_of_groups = zero._get_norm_groups

            def judged_groups():
                norms = norms_of_groups()
                return norms if self._judge(_norm_of(combine_grad_norm_groups(norms))) else [torch.full_like(norms[0], -1.0)]

            zero._get_norm_groups = judged_groups
        else:
            # the norm shows infinities too; to search for them would read all gradients once more, and wait for the device
            zero.check_overflow = lambda partition_gradients=True: None
            if not zero.cpu_offload:
                zero.get_grad_norm_direct = lambda gradients, params, norm_type=2: _group_norm(zero, gradients)
            norm_of_all = zero.scaled_global_norm

            def judged_norm(norm_type=2):
                norm = norm_of_all(norm_type)
                return norm if self._judge(_norm_of(norm)) else torch.full_like(torch.as_tensor(norm), -1.0)

            zero.scaled_global_norm = judged_norm

    def _rescale_within_step(self) -> None:
        """Between norm and update ZeRO 1 to 3 clip, group by group; there the gradient is rescaled to its norm (0.19.8)."""
        zero = self.deepspeed.optimizer
        unscale_and_clip = zero.unscale_and_clip_grads

        def rescaled(group, norm):
            # ZeRO 3 knows a group by its number, the others by its gradients
            gradients = [zero.fp32_partitioned_groups_flat[group].grad] if self.stage == 3 else group
            self._rescale(gradients)
            if zero.loss_scale != 1.0:
                unscale_and_clip(group, norm)
            elif self._norm + 1e-6 > zero.clip_grad > 0.0:
                # by the norm that is known here already: DeepSpeed reads it from the device, group by group, and waits for it
                torch._foreach_mul_(gradients, zero.clip_grad / (self._norm + 1e-6))

        zero.unscale_and_clip_grads = rescaled

    def _rescale(self, gradients: list[torch.Tensor]) -> None:
        if self._target_norm is not None and self._norm > 0:
            torch._foreach_mul_(gradients, self._target_norm / self._norm)

    def _step_unpartitioned(self) -> None:
        self._zero_idle_gradients()
        if self._judge(self._gradient_norm()):
            self._rescale([p.grad for p in self.model.parameters() if p.requires_grad])
            self.deepspeed.step()
        else:
            self.deepspeed.zero_grad()

    def _zero_idle_gradients(self) -> None:
        """ZeRO 0 steps a plain optimizer, which would skip what has no gradient."""
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _gradient_norm(self) -> float:
        """ZeRO 0 in float32 reports no norm. Experts of the other ranks of the expert group are added."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        own = [p.grad for p in trained if not hasattr(p, "group_name")]
        experts = [p.grad for p in trained if hasattr(p, "group_name")]
        total = torch.stack([g.float().square().sum() for g in own]).sum() if own else torch.zeros((), device=self.device)
        if experts:
            theirs = torch.stack([g.float().square().sum() for g in experts]).sum()
            name = next(m for m in self.model.modules() if isinstance(m, ExpertParallelLayer)).ep_group_name
            dist.all_reduce(theirs, group=deepspeed_groups._get_expert_parallel_group(name))
            total = total + theirs
        return float(total.sqrt())

    def _clear_stale_gradients(self) -> None:
        """Forget this step's gradients where DeepSpeed keeps them beyond the step (0.19.8: ZeRO 3, and offload at 1 and 2, in
        what the optimizer reads and in the sum of micro-batches)."""
        zero = self.deepspeed.optimizer
        if self.stage == 3:
            zero.grad_partitions_flat_buffer.zero_()
            kept = [partition.grad for partition in zero.fp32_partitioned_groups_flat]
        elif self.stage in (1, 2) and zero.cpu_offload:
            kept = [partition.grad for partition in zero.single_partition_of_fp32_groups]
            kept += zero.accumulated_grads_in_cpu.values()
        else:
            return
        for gradient in kept:
            if gradient is not None:
                gradient.zero_()


def _group_norm(zero, gradients: list[torch.Tensor]) -> torch.Tensor:
    """The norm of a group's gradients over all ranks, -1 where it is not finite, as ZeRO 1 and 2 want it. DeepSpeed itself
    (0.19.8) copies one gradient after another to float64 for it; here all are read once, as they are. In float64 on a CPU, which
    adds one number after another; a GPU adds in a tree."""
    own = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
    norms = torch._foreach_norm(own, 2, dtype=torch.float64 if zero.device == "cpu" else torch.float32)
    total = torch.stack(norms).square().sum().float() if norms else torch.zeros((), device=zero.device)
    dist.all_reduce(total, group=zero.dp_process_group)
    norm = total.sqrt()
    return torch.where(norm.isfinite(), norm, -1.0)


def _norm_of(norm) -> float:
    """DeepSpeed's norm as a number; its -1 stands for one that is not finite."""
    norm = float(norm)
    return norm if norm >= 0 else math.inf


@torch.no_grad()
def finish_counts(routers: list[Router], taken: bool) -> None:
    """What routers count in a step (`Router.counts`): begin to count anew, after each router was given the sum over ranks where
    the step was `taken`. All ranks call it alike.

    routers: in the same order on all ranks; of those that count, one message for all of them together.
    """
    if not routers:
        return
    counts = [router.counts() for router in routers]
    if taken:
        total = torch.cat([count.flatten() for count in counts])
        if world_size() > 1:
            dist.all_reduce(total)
        for router, count, summed in zip(routers, counts, total.split([count.numel() for count in counts])):
            router.after_step(summed.view_as(count))
    for count in counts:
        count.zero_()
