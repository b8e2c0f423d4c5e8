"""Exported models as encoders of the harness mteb (MTEB, MIEB, MAEB, MVEB): texts, images, videos and audio to vectors.

    import mteb
    from imp_ds.evaluation.harness import MtebModel

    mteb.evaluate(MtebModel("model"), mteb.get_benchmark("MIEB(lite)"))

An item's vector is the model's `get_features`: one for all pairs of modalities, whose cosine ranks as the pair's own does. An
item of several modalities, as a picture with a text, has the mean of theirs; a text without a token, such as an empty one, has a
vector of zeros. Each item is routed to the experts alone, so no score depends on the batch size.

Shapes: B items of a batch, N of all, W windows of a recording, K blocks, C width of a block, D = K * C.
"""

import copy
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoProcessor

import imp_ds  # noqa: F401  its Auto classes
from imp_ds.data.loading.collation import Collator
from imp_ds.errors import UserError
from imp_ds.evaluation.embedding import mean_vector
from imp_ds.evaluation.harness.media import KINDS, plain, windows
from imp_ds.evaluation.harness.model_meta import model_meta
from imp_ds.modalities.text.tokens import has_tokens
from imp_ds.modalities.views import Views

INSTALL = 'pip install "imp_ds[eval]"'


class MtebModel:
    """An exported model as mteb's EncoderProtocol.

    Args:
        model_name: folder of an exported model.
        revision: what the results are kept under; None: a hash of the folder's weights and settings.
        device: None: a GPU if there is one.

    mteb_model_meta: mteb's ModelMeta; it is made when it is first asked for.

    Raises UserError for items that cannot be read, and for a modality that the model does not have.
    """

    def __init__(self, model_name: str | Path, revision: str | None = None, *, device: str | None = None):
        self.folder, self.revision = Path(model_name), revision
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = AutoModel.from_pretrained(self.folder).to(self.device).eval()
        self.processor = AutoProcessor.from_pretrained(self.folder)
        self._views: Views | None = None
        self._task: str | None = None
        self._prompts: dict[str, list[str]] = {}
        self._meta = None

    def seen_as(self, views: Views, prompts: dict[str, list[str]] | None = None, task: str | None = None) -> "MtebModel":
        """The same model that reads media and texts as `views` has them, all windows of a long recording too, instead of as
        its processor does.

        Args:
            prompts: texts that stand for several, as the name of a class does for its prompts: such a text's vector is the mean
                of theirs, a unit vector in each block.
            task: whose condition task and attribute gates get.
        """
        other = copy.copy(self)
        other._views, other._prompts, other._task = views, prompts or {}, task
        return other

    @property
    def mteb_model_meta(self):
        """mteb's ModelMeta."""
        if self._meta is None:
            self._meta = model_meta(self.model, self.folder, self.revision, self._encode("text", ["a"]).shape[1])
        return self._meta

    def encode(self, inputs: Iterable[dict], *, task_metadata=None, hf_split=None, hf_subset=None, prompt_type=None, **kwargs):
        """The vectors of all items of a DataLoader, float32 [N, D], of length 1. A batch has lists under some of text, image,
        audio and video: pictures of PIL, files, arrays, decoders of torchcodec."""
        found = []
        for batch in inputs:
            own = [self._encode(kind, list(batch[kind])) for kind in KINDS if kind in batch]
            if not own:
                raise UserError("a batch has nothing to encode", got=", ".join(batch), allowed=", ".join(KINDS))
            found.append(F.normalize(torch.stack(own).sum(0), dim=-1))
        return torch.cat(found).numpy()

    def similarity(self, embeddings1, embeddings2) -> torch.Tensor:
        """Cosines of all pairs, [N, M]."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1, embeddings2) -> torch.Tensor:
        """Cosines of the pairs that stand side by side, [N]."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)

    def _encode(self, kind: str, values: list) -> torch.Tensor:
        """Vectors of one kind of items, float32 [B, D], on the CPU."""
        if kind == "text":
            parts = [list(filter(self._has_tokens, self._prompts.get(text, [text]))) for text in values]
        else:
            parts = [windows(kind, value, self._views) for value in values]
        if not any(parts):
            return torch.zeros(len(values), self._encode("text", ["a"]).shape[1])
        width = self.model.config.common_dim
        vectors_WD = self._features(kind, [part for own in parts for part in own])
        return torch.stack([mean_vector(own, width) for own in vectors_WD.split([len(own) for own in parts])])

    def _has_tokens(self, text: str) -> bool:
        return has_tokens(text, self.processor.tokenizer)

    def _features(self, kind: str, parts: list) -> torch.Tensor:
        modality = KINDS[kind]
        with torch.no_grad():
            inputs = {name: value.to(self.device) for name, value in self._inputs(kind, modality, parts).items()}
            return self.model.get_features(modality, task=self._task, **inputs).pooler_output.float().cpu()

    def _inputs(self, kind: str, modality: str, parts: list) -> dict[str, torch.Tensor]:
        view = None if self._views is None else getattr(self._views, modality)
        if view is None:
            return dict(self.processor(**{plain(kind): parts}))
        if kind == "text":
            return dict(self.processor(text=parts, padding="max_length", truncation=True, max_length=view.length))
        return Collator(self.processor)("mteb", Views(**{modality: view}), [{modality: part} for part in parts]).inputs[modality]


def _unit(vectors) -> torch.Tensor:
    """float [N, D], each of length 1."""
    return F.normalize(torch.as_tensor(np.asarray(vectors)).float(), dim=-1)
