"""The processor of a run of Uni-MoE, from its parts, its tokenizer and its corpus."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from imp_ds.data.corpus import all_captions
from imp_ds.errors import UserError
from imp_ds.modalities.text.tokenizers import load_tokenizer, train_tokenizer
from imp_ds.models.uni_moe.chat_template import CHAT_TEMPLATE, CHATML_TEMPLATE, END, TURN
from imp_ds.models.uni_moe.configuration_uni_moe import UniMoeConfig
from imp_ds.models.uni_moe.connectors import build_connector
from imp_ds.models.uni_moe.processing_uni_moe import UniMoeProcessor
from imp_ds.models.uni_moe.towers import INPUTS, Tower


def build_processor(run, readers: dict) -> UniMoeProcessor:
    """With the run's tokenizer, or that of the language model's folder, or one trained on the corpus' conversations."""
    tokenizer, template = _tokenizer(run, readers)
    media = run.model.media()
    config = run.model.to_config(len(tokenizer), run.tasks)
    return UniMoeProcessor(
        tokenizer, media.image_processor, media.video_processor, media.feature_extractor, template,
        media_tokens=media_tokens(config), num_frames=media.frames, chunk_seconds=media.chunk_seconds,
    )  # fmt: skip


def _tokenizer(run, readers: dict) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer and its chat template."""
    folder = run.model.language_model
    name = run.data.tokenizer or (folder if isinstance(folder, str) else None)
    if name is None:
        tokenizer = train_tokenizer(all_captions(readers), run.data.vocab_size, seed=run.data.seed)
    else:
        tokenizer = load_tokenizer(name)
    template = _template(run.model.chat_template, tokenizer)
    if template is CHAT_TEMPLATE:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [TURN, END], "eos_token": END}, replace_extra_special_tokens=False
        )
        if (
            isinstance(folder, str)
            and max(tokenizer.convert_tokens_to_ids([TURN, END])) >= run.model.to_config(0, []).text_config.vocab_size
        ):
            fix = "set model.chat_template to a file that does with the tokens of this model"
            raise UserError("the language model has no tokens for the marks of turns", got=folder, fix=fix)
    return tokenizer, template


def _template(file: str | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """The one of the file; the tokenizer's, where it marks what the assistant says; ChatML with marks, where it has its tokens;
    or ours."""
    if file is not None:
        if not Path(file).is_file():
            raise UserError("the chat template is not there", got=file, fix="--set model.chat_template=FILE.jinja")
        template = Path(file).read_text(encoding="utf-8")
        if "generation" not in template:
            fix = "put {% generation %} and {% endgeneration %} around what the assistant says"
            raise UserError("the chat template does not mark what the assistant says", got=file, fix=fix)
        return template
    own = tokenizer.chat_template
    if isinstance(own, str) and "{% generation" in own.replace("{%-", "{%"):
        return own
    vocabulary = tokenizer.get_vocab()
    return CHATML_TEMPLATE if {"<|im_start|>", "<|im_end|>"} <= vocabulary.keys() else CHAT_TEMPLATE


def media_tokens(config: UniMoeConfig) -> dict[str, int]:
    """Tokens of the language model that a medium of each kind becomes; found on the meta device."""
    found = {}
    with torch.device("meta"):
        for kind, name in config.towers.items():
            tower = Tower(config.tower_config(name), config.feature_layer).eval()
            shapes = config.media_shapes[kind]
            values, *positions = [torch.empty(1, *shapes[name]) for name in INPUTS[kind] if name in shapes]
            connector = build_connector(tower.width, config.hidden_size, config.grids.get(kind), **config.connectors[kind])
            found[kind] = connector(tower(kind, values, *positions)).shape[1]
    return found
