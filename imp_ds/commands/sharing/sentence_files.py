"""The files by which `SentenceTransformer(folder)` knows what an exported model embeds, and by which of its methods.

Written for sentence-transformers 6: each kind of input has a method of the model, whose `pooler_output` is the sentence's
embedding. An older version ignores what it does not know, and takes the model for one of texts.
"""

import json
from pathlib import Path

MODULES = "modules.json"
_TRANSFORMER = "sentence_transformers.models.Transformer"


def write_sentence_files(folder: Path, methods: dict[str, str]) -> None:
    """Write the files into the folder of a model.

    Args:
        methods: what the model embeds, as sentence-transformers calls it ("text", "image", "video", "audio"): the method of the
            model that does. Without any nothing is written: the folder is then none of such a model.
    """
    if not methods:
        return
    modality_config = {kind: {"method": method, "method_output_name": "pooler_output"} for kind, method in methods.items()}
    files = {
        MODULES: [{"idx": 0, "name": "0", "path": "", "type": _TRANSFORMER}],
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": modality_config,
            "module_output_name": "sentence_embedding",
        },
    }
    # prompts before texts belong to models that were trained with some
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
