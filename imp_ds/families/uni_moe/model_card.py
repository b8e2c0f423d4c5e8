"""What the card of an exported model of Uni-MoE says of it: what it is, and how it is asked."""

from imp_ds.families.card import Card
from imp_ds.models.uni_moe.configuration_uni_moe import UniMoeConfig

_ABOUT = """\
A language model that is asked in texts with {media} in them, and answers in text (Uni-MoE,
[arXiv 2405.11273](https://arxiv.org/abs/2405.11273)). {towers} A connector for each kind of media leads from its encoder to the
language model. {experts} It was trained with `imp_ds` on DeepSpeed.
"""
_ASKING = """\
```python
import imp_ds  # makes the Auto classes know the model
import numpy as np
from transformers import AutoModelForMultimodalLM, AutoProcessor

folder = {folder!r}
model = AutoModelForMultimodalLM.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder)

{samples}
question = [{{"role": "user", "content": [{parts}{{"type": "text", "text": "What is this?"}}]}}]
inputs = processor.apply_chat_template(
    [question], tokenize=True, return_dict=True, add_generation_prompt=True, processor_kwargs={{"return_tensors": "pt"}}
)
ids = model.generate(**inputs, max_new_tokens=16)
answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
```

On the command line: `imp_ds chat {folder}{options} "What is this?"`.
"""
_SAMPLES = {  # of each kind of media a blank one, and what else it may be
    "image": "image = np.zeros((64, 64, 3), dtype=np.uint8)  # or a PIL image, or 'photo.png'",
    "video": "video = np.zeros((8, 64, 64, 3), dtype=np.uint8)  # its frames, or 'clip.mp4'",
    "audio": "audio = np.zeros(16000, dtype=np.float32)  # mono, at processor.sampling_rate, or 'question.wav'",
}
_SCORED = "answers are greedy; _blind: without the media, _shuffled: with those of another conversation"


def card(run, config: UniMoeConfig, layers: list[int], folder: str = ".") -> Card:
    """What is said of a model of Uni-MoE. layers: those with experts; folder: what the example loads."""
    text, kinds = config.text_config, list(config.towers)
    parts = "".join(f'{{"type": "{kind}", "{kind}": {kind}}}, ' for kind in kinds)
    options = "".join(f" --{kind} FILE" for kind in kinds)
    samples = "\n".join(_SAMPLES[kind] for kind in kinds)
    asking = _ASKING.format(folder=folder, samples=samples, parts=parts, options=options).replace("\n\n\n", "\n\n")
    return Card(
        about=_ABOUT.format(media=_listed(kinds) or "nothing else", towers=_towers(config), experts=_experts(config, layers)),
        tags=["uni_moe", "multimodal", "conversational"],
        sections=["## Asking", asking, "## What it was made of", origins(run)],
        shape=[("language model", f"{text.model_type}, {text.num_hidden_layers} layers, width {text.hidden_size}")],
        scored=_SCORED,
        pipeline_tag=f"{kinds[0]}-text-to-text" if kinds else "text-generation",
    )


def stock_card(model: str, processor: str) -> Card:
    """What is said of one that was written as classes of transformers. model, processor: the Auto classes that load them."""
    about = "A model of Uni-MoE ([arXiv 2405.11273](https://arxiv.org/abs/2405.11273)), trained with `imp_ds` on DeepSpeed and "
    loading = (
        f"```python\nfrom transformers import {model}, {processor}\n\n"
        f'model, processor = {model}.from_pretrained(".").eval(), {processor}.from_pretrained(".")\n```\n'
    )
    return Card(
        about=about + "written as classes of transformers, which need no other package.\n", tags=["multimodal", "conversational"],
        sections=["## Loading", loading], scored=_SCORED,
        pipeline_tag="image-text-to-text" if processor == "AutoProcessor" else "text-generation",
    )  # fmt: skip


def _towers(config: UniMoeConfig) -> str:
    read = {name: [kind for kind, tower in config.towers.items() if tower == name] for name in config.towers.values()}
    types = {name: config.tower_config(name).model_type for name in read}
    each = [f"{_listed(kinds)} by an encoder of the kind `{types[name]}`" for name, kinds in read.items()]
    return f"It reads {'; '.join(each)}." if each else "It reads texts alone."


def _experts(config: UniMoeConfig, layers: list[int]) -> str:
    if not layers:
        return "Its feed-forwards are dense."
    where = f"layers {', '.join(map(str, layers))} (of {config.text_config.num_hidden_layers}, from 0)"
    taken = f"of which each token takes {config.num_experts_per_tok}"
    mixture = f"The feed-forward of {where} is a mixture of {config.num_experts} experts, {taken}."
    slots = sorted(config.expert_sources.items(), key=lambda slot: slot[1]["expert"])
    began = [f"{of['expert']} (`{slot}`) as that of {_origin(of)}" for slot, of in slots]
    return f"{mixture} Experts began as feed-forwards of dense models: {', '.join(began)}." if began else mixture


def origins(run) -> str:
    """Of which run it is, what its parts began as (experts are told of above), and what was trained of them."""
    began = {"language model": run.model.language_model}
    began |= {f"connector of {kind}": start for kind, start in run.model.connector_starts().values()}
    lines = [f"- run: `{run.name}`"]
    lines += [f"- {part}: from `{folder}`" for part, folder in began.items() if isinstance(folder, str)]
    if run.model.adapter is not None:
        lines.append(f"- LoRA: from the adapter `{run.model.adapter}`, trained further, and merged into the weights")
    elif (lora := run.model.lora) is not None:
        modules = lora.target_modules if isinstance(lora.target_modules, list) else [lora.target_modules]
        targets = ", ".join(f"`{target}`" for target in [*modules, *lora.target_parameters])
        lines.append(f"- LoRA: r = {lora.r}, lora_alpha = {lora.lora_alpha:g}, on {targets}; merged into the weights")
    trained = run.train.trainable
    lines.append("- trained: " + ("all of it" if trained is None else ", ".join(f"`{pattern}`" for pattern in trained)))
    return "\n".join(lines) + "\n"


def _origin(of: dict) -> str:
    steps = "" if of["step"] is None else f" after {of['step']:,} steps"
    return f"`{of['source']}`{steps}"


def _listed(kinds: list[str]) -> str:
    plural = [kind if kind == "audio" else f"{kind}s" for kind in kinds]
    return " and ".join(filter(None, [", ".join(plural[:-1]), *plural[-1:]]))
