"""What a run of Uni-MoE costs: counted on the meta device, with one medium of each kind in each conversation, which no plan knows
better; and of a batch that is there by its rows, their length and its media.

A conversation of L tokens costs a + b L + c L^2, whose numbers follow from three lengths; each medium costs what its tower and
its connector do, and its tokens are among the L.

Shapes: B conversations, L tokens, M tokens of a medium, S width of a tower.
"""

from collections.abc import Callable

import torch

from imp_ds.config import RunConfig
from imp_ds.families.counted_cost import CountedCost
from imp_ds.families.uni_moe.train_module import UniMoeForTraining
from imp_ds.tasks import Batch, Task

_LENGTHS = (8, 16, 24)


class UniMoeCost(CountedCost):
    """A `CostModel`. model: on the meta device."""

    model: UniMoeForTraining

    def __init__(self, run: RunConfig, model: UniMoeForTraining):
        super().__init__(run, model, lambda run, task, samples: self._batch(task, task.views.messages.length, samples))
        self._feature_shapes: dict[str, torch.Size] = {}

    def _key(self, task: Task) -> tuple:
        return (task.views.messages.length,)

    def batch_flops(self, world: int, alone: bool) -> Callable[[Batch], float]:
        (a, b, c), media = self._conversation_and_media()

        def flops(batch: Batch) -> float:
            inputs = batch.inputs["messages"]
            rows, length = inputs["input_ids"].shape
            found = rows * (a + b * length + c * length**2)
            for kind, of_one in media.items():
                there = int(inputs[f"{kind}_count"].sum()) if f"{kind}_count" in inputs else 0
                found += (there or (world > 1)) * of_one  # where others may have some, one blank medium goes the same way
            return float(found)

        return flops

    def _conversation_and_media(self) -> tuple[tuple[float, float, float], dict[str, float]]:
        """a, b and c of a conversation, and what a medium of each kind costs: the difference that a second one makes."""
        task, (l1, l2, l3) = self.run.tasks[0], _LENGTHS
        f1, f2, f3 = (self._flops(self._batch(task, length)) for length in _LENGTHS)
        media = {kind: self._flops(self._batch(task, l1, media={kind: 2})) - f1 for kind in self.model.config.towers}
        c = ((f3 - f2) / (l3 - l2) - (f2 - f1) / (l2 - l1)) / (l3 - l1)
        b = (f2 - f1) / (l2 - l1) - c * (l1 + l2)
        return (f1 - sum(media.values()) - b * l1 - c * l1**2, b, c), media

    def _flops(self, batch: Batch) -> float:
        return sum(kernel.flops for kernel in self.counted(batch).kernels)

    def _keeps(self, kind: str) -> bool:
        return bool(self.run.data.messages.feature_cache_gb) and not self.model.uni_moe.tower(kind).is_trained

    def _batch(self, task: Task, length: int, samples: int = 1, media: dict[str, int] = {}) -> Batch:
        """One medium of each kind that the model reads in each conversation, or as `media` says; where the features of frozen
        towers are computed before the first step (`data.messages.feature_cache_gb`), these in the place of the medium."""
        ids_BL = torch.empty(samples, length, dtype=torch.int64, device="meta")
        inputs = {"input_ids": ids_BL, "attention_mask": ids_BL}
        for kind, shapes in self.model.config.media_shapes.items():
            count = media.get(kind, 1)
            if self._keeps(kind):
                inputs[f"{kind}_features"] = torch.empty(samples, count, *self._features_of(kind), device="meta")
            else:
                inputs |= {name: torch.empty(samples, count, *shape, device="meta") for name, shape in shapes.items()}
            inputs[f"{kind}_count"] = ids_BL[:, 0]
        return Batch(task.name, {"messages": inputs}, {"labels": ids_BL})

    def _features_of(self, kind: str) -> torch.Size:
        """[M, S] of a medium of that kind."""
        if kind not in self._feature_shapes:
            with torch.no_grad():
                features_1MS = self.model.uni_moe.encode_media(kind, *self.model.blank(kind, "meta"))
            self._feature_shapes[kind] = features_1MS.shape[1:]
        return self._feature_shapes[kind]
