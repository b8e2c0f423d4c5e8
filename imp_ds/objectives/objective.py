"""What an objective is."""

import torch
from torch import nn

from imp_ds.models.imp.modeling_imp import Encoding, ImpModel


class Objective(nn.Module):
    """A loss on a task's batch, with the head that it needs. forward: (the encoder, encodings, targets) -> (loss, metrics).

    compares_samples: whether a sample's loss depends on the others of its batch; where not, the loss is the mean over the
        samples.
    """

    compares_samples = False

    def encode(self, model: ImpModel, batch, encodings: dict[str, Encoding]) -> None:
        """Add to `encodings` what `forward` asks for and is not there yet: by default each modality of the batch alone, by its
        name.

        `batch` is an `imp_ds.tasks.Batch`. Every rank encodes the same sequences in the same order. An objective that compares
        samples reads no more than `pooled_BD` of them.
        """
        # The shortest first, because its backward then comes last. A GPU is through with a few words sooner than the host can
        # launch them; after a long sequence, which keeps it busy, nobody waits for that.
        for modality, inputs in sorted(batch.inputs.items(), key=lambda item: next(iter(item[1].values())).shape[1]):
            if modality not in encodings:
                condition = model.condition(modality, batch.task)
                encodings[modality] = model.encode(modality, inputs, batch.key_B, condition)

    def forward(
        self, model: ImpModel, encodings: dict[str, Encoding], targets: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        raise NotImplementedError
