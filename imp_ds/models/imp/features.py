"""One vector for an item: what vector stores, harnesses and transformers' habits ask of a model (`get_image_features`, ...).

A contrastive model compares two modalities in a space of their own, with a projection for each direction. The block vector has a
block of C numbers for each pair of modalities that the model was trained on; a modality fills those that it is one side of, and
the others are zeros:

    vision = [v>t, v>a, 0] / sqrt(2),   text = [t>v, 0, t>a] / sqrt(2),   audio = [0, a>v, a>t] / sqrt(2)

Two modalities share one filled block, so their cosine is that of the pair, divided by the square root of how many blocks each
fills: it ranks as the pair does. Within one modality it is the mean over its spaces.

Shapes: B batch, L tokens of an example, D width, C width of a common space, K pairs.
"""

import torch
import torch.nn.functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from imp_ds.errors import UserError
from imp_ds.modalities.modality import get_modality
from imp_ds.modalities.sides import JOINED
from imp_ds.models.imp.conditions import condition_name, is_target, task_conditions, task_sides, trained_spaces
from imp_ds.models.imp.encoder.prompts import SEPARATE
from imp_ds.models.imp.inputs import VIDEOS, by_modality, modality_of
from imp_ds.models.imp.likelihood import encode_with_spe

_MEDIA = {"image": "vision", "video": VIDEOS, "audio": "audio"}  # as transformers calls them: the sources of `by_modality`


def first_values(vectors_BC: torch.Tensor, count: int | None) -> torch.Tensor:
    """The first `count` values of unit vectors, as unit vectors; None: as they are. Raises UserError for more than there are."""
    if count is None:
        return vectors_BC
    if not 1 <= count <= vectors_BC.shape[-1]:
        raise UserError("a vector has no such number of first values", got=count, allowed=f"1 to {vectors_BC.shape[-1]}")
    return F.normalize(vectors_BC[..., :count], dim=-1, eps=1e-6)


class FeatureMethods:
    """The methods of ImpModel that give one vector for an item."""

    def get_features(
        self, modality: str, *, task: str | None = None, target: bool | None = None, output_hidden_states: bool | None = None,
        output_attentions: bool | None = None, return_dict: bool | None = None, truncate_dim: int | None = None,
        **inputs: torch.Tensor | None,
    ) -> BaseModelOutputWithPooling | tuple:  # fmt: skip
        """A vector of length 1 for each example of a modality, `pooler_output`, float32, and its tokens after the encoder,
        `last_hidden_state` [B, L, D].

        `pooler_output` is

        - the block vector [B, K * C] of a modality that some task compares with another in a common space;
        - in a model that compares by its likelihood head alone, the vector of that head [B, C], whose cosine ranks as the
          likelihood does; `last_hidden_state` then begins with the token <SPE>;
        - else the pooled tokens [B, D], which heads read: comparable within the modality alone.

        Args:
            modality: one of config.modalities.
            task, output_hidden_states, output_attentions, return_dict: as in `forward`. Without a task a pair is compared as in
                the first task, by name, that compares it; other vectors are of the first task that has the modality.
            target: whether the examples are candidates, as in `condition`.
            truncate_dim: as in `forward`, of each block.
            inputs: of the modality, as `ImpProcessor` gives them.

        Raises UserError for a modality that the model does not have, and as `forward`.
        """
        if modality not in self.config.modalities:
            allowed = ", ".join(self.config.modalities)
            raise UserError("the model does not have this modality", got=modality, allowed=allowed)
        given = by_modality(self.config, inputs)
        if set(given) != {modality}:
            fix = f"give {get_modality(modality).inputs[0]} alone"
            raise UserError(f"features of {modality} from other inputs", got=", ".join(given), fix=fix)
        chosen = lambda said, name: getattr(self.config, name) if said is None else said  # noqa: E731
        layers = dict(
            hidden_states=chosen(output_hidden_states, "output_hidden_states"),
            attentions=chosen(output_attentions, "output_attentions"),
        )
        vector, encoding = self._features(modality, given[modality], (task, target), layers, truncate_dim)
        output = BaseModelOutputWithPooling(encoding.tokens_BLD, vector, encoding.hidden_states, encoding.attentions)
        return output if chosen(return_dict, "return_dict") else output.to_tuple()

    def cosine_scale(self, modality: str, other: str) -> float | None:
        """What the cosine of two vectors of `get_features` is multiplied by to be that of the pair's own space; 1 within a
        modality. None: no task compares the two, and their cosine says nothing."""
        spaces = trained_spaces(self.config)
        if not spaces:
            return 1.0 if modality == other or self.likelihood is not None else None
        if not any({modality, other} <= {*pair} for pair in spaces):
            return None
        filled = [sum(name in pair for pair in spaces) for name in (modality, other)]
        return 1.0 if modality == other else (filled[0] * filled[1]) ** 0.5

    def get_text_features(self, input_ids=None, attention_mask=None, **options) -> BaseModelOutputWithPooling | tuple:
        """`get_features` of texts."""
        return self.get_features("text", input_ids=input_ids, attention_mask=attention_mask, **options)

    def get_image_features(self, pixel_values=None, pixel_positions=None, **options) -> BaseModelOutputWithPooling | tuple:
        """`get_features` of images."""
        return self.get_features("vision", pixel_values=pixel_values, pixel_positions=pixel_positions, **options)

    def get_video_features(
        self, pixel_values_videos=None, pixel_positions_videos=None, pixel_values=None, pixel_positions=None, **options
    ) -> BaseModelOutputWithPooling | tuple:
        """`get_features` of videos, by either of the names under which the processor gives them."""
        if pixel_values_videos is not None:
            pixel_values, pixel_positions = pixel_values_videos, pixel_positions_videos
        return self.get_image_features(pixel_values, pixel_positions, **options)

    def get_audio_features(self, input_features=None, feature_positions=None, **options) -> BaseModelOutputWithPooling | tuple:
        """`get_features` of audio."""
        return self.get_features("audio", input_features=input_features, feature_positions=feature_positions, **options)

    def _features(self, modality: str, inputs: dict, of: tuple, layers: dict[str, bool], truncate_dim: int | None) -> tuple:
        """The vector, and the Encoding that it was made of, or the first of several. of: the task and the side that were asked
        for, or None; layers: what of its layers an Encoding shall have."""
        task, target = of
        spaces = trained_spaces(self.config)
        own = [pair for pair in spaces if modality in pair]
        if not own:
            condition = self.condition(modality, task or first_task(self.config, modality), target=target)
            if spaces or self.likelihood is None:
                encoding = self.encode(modality, inputs, condition=condition, **layers)
                return first_values(F.normalize(encoding.pooled_BD.float(), dim=-1), truncate_dim), encoding
            encoding = encode_with_spe(self, [(modality, inputs, condition)], **layers)
            return first_values(self.likelihood(encoding.pooled_BD), truncate_dim), encoding
        encodings, blocks = {}, {}
        for pair in own:
            said = task or first_task(self.config, modality, pair) or first_task(self.config, modality)
            key = self._distinguished(modality, said, target)
            if key not in encodings:
                condition = self.condition(modality, said, target=target)
                encodings[key] = self.encode(modality, inputs, condition=condition, **layers)
            other = pair[1] if pair[0] == modality else pair[0]
            blocks[pair] = self.project(encodings[key].pooled_BD, modality, other, truncate_dim)
        return block_vector(spaces, blocks), next(iter(encodings.values()))

    def encode_side(self, side: str, inputs: dict[str, dict], task: str | None = None, key_B: torch.Tensor | None = None):
        """The Encoding of one modality, or of several as one sequence, "vision+audio". inputs: of each of them by its name; the
        other arguments as of `encode` and `condition`."""
        parts = [(modality, inputs[modality], self.condition(modality, task)) for modality in side.split(JOINED)]
        return self.encode_segments(parts, key_B)

    def _joint_embeddings(self, given: dict[str, dict], task: str | None, truncate_dim: int | None) -> dict[str, torch.Tensor]:
        """What `forward` gives of modalities that the model compares together, where all of them are given."""
        pairs = [name.split("_to_") for name in self.projections]
        sides = {side for side, _ in pairs if JOINED in side and given.keys() >= set(side.split(JOINED))}
        pooled = {side: self.encode_side(side, given, task).pooled_BD for side in sorted(sides)}
        return {f"{a}_to_{b}": self.project(pooled[a], a, b, truncate_dim) for a, b in pairs if a in pooled}

    def _by_common_names(self, encodings: dict, embeddings: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What `forward` gives by the names that models of transformers have for it: of one source its tokens and its vector, as
        `get_features` has it; of media and texts the logits of each pair, which are cosines by the learned temperature."""
        found, spaces = {}, trained_spaces(self.config)
        if len(encodings) == 1:
            ((source, encoding),) = encodings.items()
            modality = modality_of(source)
            blocks = {pair: embeddings[f"{source}_to_{pair[pair[0] == modality]}"] for pair in spaces if modality in pair}
            found["last_hidden_state"] = encoding.tokens_BLD
            if blocks or spaces or self.likelihood is None:
                pooled = lambda: F.normalize(encoding.pooled_BD.float(), dim=-1)  # noqa: E731
                found["pooler_output"] = block_vector(spaces, blocks) if blocks else pooled()
        for name, source in _MEDIA.items():
            media_BC, text_BC = embeddings.get(f"{source}_to_text"), embeddings.get(f"text_to_{modality_of(source)}")
            if source in encodings and "text" in encodings and media_BC is not None and text_BC is not None:
                found[f"logits_per_{name}"] = media_BC @ text_BC.T / self.config.temperatures.get(modality_of(source), 1.0)
                found.setdefault("logits_per_text", found[f"logits_per_{name}"].T)
        return found

    def _distinguished(self, modality: str, task: str | None, target: bool | None) -> tuple:
        """What the encoder reads of a task: equal for tasks that need no encoding of their own."""
        config = self.config
        gated = config.num_experts or config.merged_conditions
        has_sides = config.prompt_length and config.candidate_prompts == SEPARATE
        return (
            condition_name(config, modality, task, target) if gated else "",
            has_sides and is_target(config, modality, task, target),
        )


def block_vector(spaces: list[tuple[str, str]], blocks: dict[tuple[str, str], torch.Tensor]) -> torch.Tensor:
    """One vector of length 1 from unit vectors [B, C] of some of the pairs, [B, K * C]; zeros for the others."""
    zeros_BC = torch.zeros_like(next(iter(blocks.values())))
    return torch.cat([blocks.get(pair, zeros_BC) for pair in spaces], dim=-1) / len(blocks) ** 0.5


def first_task(config, modality: str, pair: tuple[str, str] | None = None) -> str | None:
    """The first of config.objectives, by name, that has the modality, or that compares the pair, among those that a merged model
    serves; None where there is none. By name, since config.json does not keep their order."""
    merged = set(config.merged_conditions)
    for task, entry in sorted(config.objectives.items()):
        sides = task_sides(task, entry["objectives"])
        if pair is None:
            fits = modality in sides.inputs | sides.targets
        else:
            fits = any({*pair} == {*space} for spec in entry["objectives"] for space in spec.get("spaces", ()))
        if fits and (not merged or merged.issuperset(task_conditions(config, task))):
            return task
    return None
