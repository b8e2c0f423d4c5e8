"""What a model of the family answers in conversations.

Shapes: B conversations, L tokens of the longest prompt, T tokens with its answer.
"""

import torch
from transformers import BatchFeature

from imp_ds.errors import UserError
from imp_ds.families.uni_moe.train_module import UniMoeForTraining
from imp_ds.models.uni_moe import UniMoeProcessor
from imp_ds.parallel.groups import world_size


def prompt_inputs(processor: UniMoeProcessor, conversations: list[list[dict]]) -> BatchFeature:
    """Conversations, decoded, up to where the assistant is to answer: the model's inputs, padded on the left.

    Raises UserError for media that the model does not read.
    """
    padded = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    return processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, add_generation_prompt=True, processor_kwargs=padded
    )


def room_for_answer(model: UniMoeForTraining, inputs: BatchFeature, most: int = 256) -> int:
    """How many tokens the language model has positions for behind its prompt: from 1 to `most`."""
    positions = getattr(model.config.text_config, "max_position_embeddings", None)
    return most if positions is None else max(1, min(most, positions - inputs["input_ids"].shape[1]))


def check_room(model: UniMoeForTraining, inputs: BatchFeature, max_new_tokens: int) -> None:
    """Raise UserError where prompt and answer are longer than the language model's positions."""
    length, most = inputs["input_ids"].shape[1], getattr(model.config.text_config, "max_position_embeddings", None)
    if most is not None and length + max_new_tokens > most:
        raise UserError(
            "the conversation is longer than the language model reads",
            got=f"{length} tokens, and {max_new_tokens} for the answer", allowed=f"{most} together",
            fix="shorten it, or ask for fewer new tokens",
        )  # fmt: skip


@torch.no_grad()
def generate(model: UniMoeForTraining, processor: UniMoeProcessor, inputs: BatchFeature, **how) -> list[str]:
    """The answers to prompts, by `generate` of transformers; greedily, unless `how` says otherwise.

    Where there are several ranks, all of them call this together with media of the same kinds, and each goes on until all are
    done: experts may be spread over them, and parameters partitioned.
    """
    device, length = next(model.parameters()).device, inputs["input_ids"].shape[1]
    how = {"do_sample": False, "synced_gpus": world_size() > 1} | how
    # from within its forward, in which ZeRO 3 finds the weights
    ids_BT = model(None, lambda model, _: model.uni_moe.generate(**inputs.to(device), **how))
    return [text.strip() for text in processor.tokenizer.batch_decode(ids_BT[:, length:], skip_special_tokens=True)]
