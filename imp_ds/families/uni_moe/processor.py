"""The processor of a run of Uni-MoE, from its parts, its tokenizer and its corpus."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from imp_ds.data.corpus import all_captions
from imp_ds.errors import UserError
from imp_ds.families.uni_moe.parts import language_config
from imp_ds.modalities.text.tokenizers import load_tokenizer, train_tokenizer
from imp_ds.models.uni_moe.chat_template import CHAT_TEMPLATE, CHATML_TEMPLATE, END, TOKENS, TURN
from imp_ds.models.uni_moe.configuration_uni_moe import UniMoeConfig
from imp_ds.models.uni_moe.connectors import build_connector
from imp_ds.models.uni_moe.processing_uni_moe import UniMoeProcessor, mark_runs
from imp_ds.models.uni_moe.towers import INPUTS, Tower


def build_processor(run, readers: dict) -> UniMoeProcessor:
    """With the run's tokenizer, or that of the language model's folder, or one trained on the corpus' conversations."""
    tokenizer, template = _tokenizer(run, readers)
    media = run.model.media()
    config = run.model.to_config(len(tokenizer), run.tasks)
    processor = UniMoeProcessor(
        tokenizer, media.image_processor, media.video_processor, media.feature_extractor, template,
        media_tokens=media_tokens(config), num_frames=media.frames, chunk_seconds=media.chunk_seconds,
        chunk_overlap=run.model.audio_overlap,
    )  # fmt: skip
    if run.model.chat_template is not None:
        _check_template(processor, run.model.chat_template)
    return processor


def _tokenizer(run, readers: dict) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer and its chat template."""
    folder = run.model.language_model
    text = language_config(folder)  # what is no model has no tokenizer either
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
        if isinstance(folder, str) and max(tokenizer.convert_tokens_to_ids([TURN, END])) >= text.vocab_size:
            fix = "set model.chat_template to a file that does with the tokens of this model"
            raise UserError("the language model has no tokens for the marks of turns", got=folder, fix=fix)
    return tokenizer, template


def _template(file: str | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """The one of the file; the tokenizer's, where it marks what the assistant says; ChatML with marks, where it has its tokens;
    or ours."""
    if file is not None:
        if not Path(file).is_file():
            raise UserError("the chat template is not there", got=file, fix="--set model.chat_template=FILE.jinja")
        try:
            return Path(file).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError("the chat template is not UTF-8", got=f"{file}: {error}", fix="write it in UTF-8") from None
    own = tokenizer.chat_template
    if isinstance(own, str) and "{% generation" in own.replace("{%-", "{%"):
        return own
    vocabulary = tokenizer.get_vocab()
    return CHATML_TEMPLATE if {"<|im_start|>", "<|im_end|>"} <= vocabulary.keys() else CHAT_TEMPLATE


def _check_template(processor: UniMoeProcessor, file: str) -> None:
    """Raise UserError for a template that cannot be rendered, that leaves media out, or of which nothing would be learned."""
    text = {"type": "text", "text": "a"}
    media = [{"type": kind} for kind in processor.media_tokens]
    answer = {"role": "assistant", "content": [text]}
    try:
        written = processor.apply_chat_template([{"role": "user", "content": [*media, text]}, answer])
        texts = 2 * [{"role": "user", "content": [text]}, answer]
        found = processor.apply_chat_template([texts], tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    except Exception as error:  # whatever its Jinja runs into
        got = f"{file}: {str(error).partition(chr(10))[0][:200] or type(error).__name__}"
        fix = "messages have role and content, a list of parts with type and text"
        raise UserError("the chat template cannot be rendered", got=got, fix=fix) from None
    if not any(mask := found["assistant_masks"][0]):
        fix = "put {% generation %} and {% endgeneration %} around what the assistant says"
        raise UserError("the chat template does not mark what the assistant says", got=file, fix=fix)
    if wrong := [kind for kind in processor.media_tokens if written.count(TOKENS[kind]) != 1]:
        fix = "write '<' + part['type'] + '>' for each part of that type, wherever it stands"
        raise UserError(f"the chat template does not place each {wrong[0]}", got=f"{file}: {written[:200]!r}", fix=fix)
    if len(mark_runs(mask)) != 2:
        fix = "let something else stand between the turns: who speaks, or a mark"
        raise UserError("the chat template does not mark each answer by itself", got=file, fix=fix)


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
