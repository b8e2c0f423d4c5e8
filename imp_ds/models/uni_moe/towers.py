"""Towers: encoders of media from transformers, or exported encoders of IMP, behind one call.

Shapes: N media, T frames of a video, L tokens, S width of the tower.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from imp_ds.errors import UserError
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.imp.modeling_imp import ImpModel

# of each kind of media the names of the model's inputs: the media themselves, and the positions that IMP's patches have
INPUTS = {
    "image": ("pixel_values", "pixel_positions"),
    "video": ("pixel_values_videos", "pixel_positions_videos"),
    "audio": ("input_features", "feature_positions"),
}
_LEADING = {"clip_vision_model": 1, "vit": 1, "audio-spectrogram-transformer": 2}  # tokens that are no place: class, distillation


class Tower(nn.Module):
    """`model` and how it is called. forward: (kind of media, values [N, ...], positions or None) -> [N, L, S].

    kind: "image", "video" or "audio". A video that an encoder of images reads, [N, T, ...], is the mean over its frames
    (arXiv 2405.11273, equation 3).

    A tower none of whose parameters is trained stays in eval mode, and its activations are not kept. Each rank has all of a
    tower's experts: ranks read different numbers of media, and experts of a capacity exchange equally many tokens.
    """

    spreads_experts = False

    def __init__(self, config: PreTrainedConfig, feature_layer: int = -1):
        super().__init__()
        self.feature_layer, self.model_type = feature_layer, config.model_type
        self.model = _built(config)
        self.width = self.model.config.d_model if self.model_type == "whisper" else self.model.config.hidden_size

    @property
    def is_trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.parameters())

    def train(self, mode: bool = True) -> "Tower":
        return super().train(mode and self.is_trained)

    def forward(self, kind: str, values: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_trained):
            if self.model_type == ImpConfig.model_type:
                return self._of_imp(kind, values, positions)
            if self.model_type == "videomae":
                return self.model(pixel_values=values).last_hidden_state
            if kind == "video":
                tokens = self._call(kind, values.flatten(0, 1))
                return tokens.view(len(values), -1, *tokens.shape[1:]).mean(1)
            return self._call(kind, values)

    def _of_imp(self, kind: str, values: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        modality = "audio" if kind == "audio" else "vision"
        names = ("input_features", "feature_positions") if kind == "audio" else ("pixel_values", "pixel_positions")
        given = {name: value for name, value in zip(names, (values, positions)) if value is not None}
        return self.model.encode(modality, given).tokens_BLD

    def _call(self, kind: str, values: torch.Tensor) -> torch.Tensor:
        if kind == "audio":
            name = "input_features" if self.model_type == "whisper" else "input_values"
            tokens = self.model(**{name: values}).last_hidden_state
        elif self.feature_layer == -1:
            tokens = self.model(pixel_values=values).last_hidden_state
        else:
            tokens = self.model(pixel_values=values, output_hidden_states=True).hidden_states[self.feature_layer]
        return tokens[:, _LEADING.get(self.model_type, 0) :]


def _built(config: PreTrainedConfig) -> nn.Module:
    """The encoder of a configuration. Raises UserError for one that transformers does not build."""
    special: dict[str, Callable] = {"whisper": WhisperEncoder, ImpConfig.model_type: ImpModel}
    try:
        return special.get(config.model_type, AutoModel.from_config)(config)
    except ValueError as error:
        raise UserError(
            "transformers has no encoder of this model_type", got=config.model_type, allowed=str(error)[:200]
        ) from None
