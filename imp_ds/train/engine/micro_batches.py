"""Gradient accumulation: one micro-batch is in memory at a time, and the gradient is that of the whole batch.

Where no samples are compared, each micro-batch goes forward and backward in its turn (`accumulate`). Else GradCache serves
(`forward`, then `losses`; Gao et al., 2021, arXiv 2101.06983): a contrastive loss compares all samples of a batch, so its
gradient is not a sum over micro-batches. But the loss sees a sample only through its pooled encoding:

    1. encode every micro-batch without keeping activations;
    2. the loss of all encodings, and its gradient g for each of them;
    3. encode every micro-batch again; what goes backward is sum(encoding * g), whose gradient is the micro-batch's part of the
       whole one.

The last micro-batch goes backward through the loss itself, from which temperatures get their gradient: so every parameter of the
task has a gradient in the last micro-batch, which DeepSpeed's offloaded optimizers need. Objectives beside it that compare no
samples are a mean over them: each micro-batch goes backward through its own share, so that what they hold (the scores of all
words) is of one micro-batch too. Random keys belong to the samples, so both encodings of a micro-batch are the same. The price is
one more forward; what is held beside one micro-batch is B x D numbers.

Shapes: B samples of this rank, D width.
"""

from collections.abc import Callable, Iterator

import torch

from imp_ds.errors import UserError
from imp_ds.families.train_module import OwnLoss, StepOutput, TrainModule
from imp_ds.moe.routing import RouterReport
from imp_ds.tasks import Batch
from imp_ds.train import random_state


class MicroBatches:
    """One rank's batch in `count` micro-batches, for `module`, a TrainModule or the engine around it.

    `forward` gives what the module gives of the whole batch; `losses`, after it, one loss for each micro-batch; each goes
    backward before the next is asked for. `accumulate` does both at once.

    shares: the weight of each micro-batch's own loss in the mean; None: all the same.
    """

    def __init__(self, module, batch: Batch, count: int, shares: list[torch.Tensor] | None = None):
        self.module, self.batch, self.count, self.shares = module, batch, count, shares
        self.parts = split(batch, count)
        self._random, self._device = [], next(iter(next(iter(batch.inputs.values())).values())).device

    def accumulate(self, backward: Callable[[torch.Tensor], None]) -> tuple[StepOutput, torch.Tensor]:
        """Where no samples are compared: `backward` is called with the loss of each micro-batch but the last, whose loss is
        returned beside the output, which is as of `forward`."""
        losses, found = [], []
        for i, part in enumerate(self.parts):
            if losses:
                backward(losses.pop())
            own = self.module(part, lambda model, micro_batch: model.own_loss(micro_batch, model.encode(micro_batch)))
            losses.append(self._share(own, i))
            found.append((own.loss.detach(), own.metrics, own.router_loss.detach(), _detached(own.reports)))
        return self._joined(*zip(*found)), losses.pop()

    def forward(self) -> StepOutput:
        """Steps 1 and 2: the loss, detached, the metrics, and the router reports, means over the micro-batches."""
        with torch.no_grad():
            pooled, own, metrics, router_losses, reports = zip(*map(self._first_encoding, self.parts))
        self._pooled = {m: [micro_batch[m] for micro_batch in pooled] for m in pooled[0]}
        loss, together, gradient = self.module(self.batch, self._loss_and_gradient)
        self._gradient = {m: g.split([len(micro_batch) for micro_batch in self._pooled[m]]) for m, g in gradient.items()}
        output = self._joined(own, metrics, router_losses, reports)
        return output._replace(loss=loss + output.loss, metrics=output.metrics | together)

    def _joined(self, own: tuple, metrics: tuple, router_losses: tuple, reports: tuple) -> StepOutput:
        """The output of the batch, from the parts of the micro-batches' `OwnLoss`."""
        if self.shares is not None:
            own, router_losses = (
                [loss * share for loss, share in zip(losses, self.shares)] for losses in (own, router_losses)
            )
        router_loss = torch.stack(list(router_losses)).mean()
        metrics = {name: torch.stack([micro_batch[name] for micro_batch in metrics]).mean() for name in metrics[0]}
        return StepOutput(sum(own) / self.count + router_loss, metrics | {"loss/router": router_loss}, _mean_reports(reports))

    def _first_encoding(self, part: Batch) -> tuple:
        self._random.append(random_state.capture(self._device))
        return self.module(part, _encode)

    def losses(self) -> Iterator[torch.Tensor]:
        """Step 3. What draws random numbers draws those of step 1 again."""
        for i, part in enumerate(self.parts):
            random_state.restore(self._random[i], self._device)
            # no gradient: no objective compares samples
            fn = self._through_loss if self._gradient and i == self.count - 1 else self._through_gradient
            yield self.module(part, lambda model, micro_batch, fn=fn, i=i: fn(model, micro_batch, i))

    def _loss_and_gradient(self, model: TrainModule, batch: Batch):
        if not model.compares_samples(batch.task):
            return 0.0, {}, {}
        leaves = {m: torch.cat(micro_batches).requires_grad_() for m, micro_batches in self._pooled.items()}
        with torch.enable_grad():
            loss, metrics = model.compare(batch.task, leaves, batch.targets)
            # a modality that no objective compares has no gradient
            gradient = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return loss.detach(), metrics, dict(zip(leaves, gradient))

    def _through_gradient(self, model: TrainModule, micro_batch: Batch, i: int) -> torch.Tensor:
        encodings = model.encode(micro_batch)
        aimed = [(encodings[m].pooled_BD * gradient[i]).sum().float() for m, gradient in self._gradient.items()]
        return sum(aimed) + self._share(model.own_loss(micro_batch, encodings), i)

    def _through_loss(self, model: TrainModule, micro_batch: Batch, i: int) -> torch.Tensor:
        encodings = model.encode(micro_batch)
        full = {m: torch.cat([*self._pooled[m][:i], encoding.pooled_BD]) for m, encoding in encodings.items()}
        loss, _ = model.compare(micro_batch.task, full, self.batch.targets)
        return loss + self._share(model.own_loss(micro_batch, encodings), i)

    def _share(self, own: OwnLoss, i: int) -> torch.Tensor:
        """A micro-batch's part of the losses that are means over samples, tokens or groups of them."""
        loss = (own.loss + own.router_loss) / self.count
        return loss if self.shares is None else loss * self.shares[i]


def split(batch: Batch, count: int) -> list[Batch]:
    """A batch in `count` parts of nearly equally many rows. Raises UserError for fewer rows than parts."""
    rows = len(next(iter(next(iter(batch.inputs.values())).values())))
    if rows < count:
        raise UserError(
            f"task {batch.task}: a rank's batch has fewer rows than micro-batches", got=f"{rows} rows",
            allowed=f"{count} or more",
            fix=f"a larger tasks.{batch.task}.batch_size, fewer micro_batches, or a smaller views.messages.pack",
        )  # fmt: skip
    return [batch.map(lambda x, i=i: x.tensor_split(count)[i]) for i in range(count)]


def _encode(model: TrainModule, micro_batch: Batch) -> tuple:
    """By name the pooled encodings; loss and metrics of the micro-batch alone; loss and, by name, reports of its routers."""
    encodings = model.encode(micro_batch)
    own = model.own_loss(micro_batch, encodings)
    return {m: encoding.pooled_BD for m, encoding in encodings.items()}, *own


def _detached(reports: dict[str, list[RouterReport]]) -> dict[str, list[RouterReport]]:
    return {name: [RouterReport(*(value.detach() for value in report)) for report in of] for name, of in reports.items()}


def _mean_reports(micro_batches: tuple[dict[str, list[RouterReport]], ...]) -> dict[str, list[RouterReport]]:
    """Reports of micro-batches of equal size as one report of the whole, layer by layer."""
    layers = {m: zip(*(micro_batch[m] for micro_batch in micro_batches)) for m in micro_batches[0]}
    mean = lambda reports: RouterReport(*(torch.stack(values).mean(0) for values in zip(*reports)))  # noqa: E731
    return {m: [mean(reports) for reports in found] for m, found in layers.items()}
