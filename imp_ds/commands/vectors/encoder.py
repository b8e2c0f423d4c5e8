"""Items to vectors by an exported model: `get_features` of what the data loader's own decoding and preprocessing give.

Shapes: W windows of a batch, D width of a vector.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from imp_ds.commands.exported_model import load_model, read_run
from imp_ds.commands.vectors.items import MODALITY, Item
from imp_ds.data.decoding import decode_windows
from imp_ds.data.loading.collation import Collator
from imp_ds.errors import UserError
from imp_ds.evaluation.embedding import mean_vector
from imp_ds.evaluation.harness.model_meta import folder_hash
from imp_ds.families import family_of
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.modality import TEXT, Wanted, get_modality
from imp_ds.modalities.views import Views

_BATCH = 32
_LONGEST_TEXT = 64  # tokens of a text, where no task of the model has a view of texts


class Encoder:
    """An exported model that gives the vectors of items.

    Args:
        folder: of an exported model with one encoder for all modalities.
        task: whose views are taken first, and whose condition task and attribute gates get; None: as `get_features` without one.

    hash: of the model; modalities: those that it compares with another, or within themselves, and has a view of.

    Raises UserError for another folder, and for a task that the model does not have.
    """

    def __init__(self, folder: Path, task: str | None = None):
        run = read_run(folder)
        if (family := family_of(run)).kind != "imp":
            got = f"{folder}, family {family.kind}"
            raise UserError("models that answer have no vectors to compare", got=got, fix="imp_ds chat asks such a model")
        known = [one.name for one in run.tasks]
        if task is not None and task not in known:
            raise UserError("the model has no such task", got=task, allowed=", ".join(known))
        self.folder, self.task, self.hash = folder, task, folder_hash(folder)
        model, processor = load_model(folder)
        self.model, self.processor = model.imp.eval(), processor
        views = [view for one in sorted(run.tasks, key=lambda one: one.name != task) for view in one.all_views]
        self._views = {kind: _view_of(kind, views, self.model.config) for kind in {**MODALITY, **dict.fromkeys(known_to(views))}}
        compared = [name for name in self.model.config.modalities if self.model.cosine_scale(name, name) is not None]
        self.modalities = [name for name in compared if any(_modality(k) == name and v for k, v in self._views.items())]
        self._collator = Collator(processor)
        self._wanted = Wanted(has_tokens=self._collator.has_tokens, settings=run.data.decoding)

    def scale(self, modality: str, other: str) -> float | None:
        """What the cosine of two vectors is multiplied by to be that of the pair (`ImpModel.cosine_scale`)."""
        return self.model.cosine_scale(modality, other)

    def encode(self, items: Sequence[Item]) -> list[np.ndarray | BadSample]:
        """The vector of each item, float32 [D], of length 1; a BadSample for one that cannot be read, or that the model cannot
        compare. A long recording has the mean of its windows."""
        found: list = [None] * len(items)
        groups: dict[tuple[str, str], list[int]] = {}
        for place, item in enumerate(items):
            view = item.view or self._views.get(item.kind)
            if view is None or item.modality not in self.modalities:
                found[place] = BadSample("not compared", f"the model compares {', '.join(self.modalities)}, not {item.kind}")
            else:
                groups.setdefault((item.modality, view.model_dump_json()), []).append(place)
        for (modality, _), places in groups.items():
            view = items[places[0]].view or self._views[items[places[0]].kind]
            for start in range(0, len(places), _BATCH):
                self._add(found, items, modality, Views(**{modality: view}), places[start : start + _BATCH])
        return found

    def _add(self, found: list, items: Sequence[Item], modality: str, views: Views, places: list[int]) -> None:
        """The vectors of the items at these places, which are seen alike."""
        entries = []
        for place in places:
            try:
                windows = decode_windows({modality: items[place].raw}, views, None, self._wanted)
                entries += [(place, window) for window in windows]
            except BadSample as bad:
                found[place] = bad.without_frames()
        if not entries:
            return
        windows = [window for _, window in entries]
        parts = [self._features(modality, views, windows[i : i + _BATCH]) for i in range(0, len(windows), _BATCH)]
        vectors_WD, of_W = torch.cat(parts), torch.tensor([place for place, _ in entries])
        for place in of_W.unique().tolist():
            found[place] = mean_vector(vectors_WD[of_W == place], self.model.config.common_dim).numpy()

    @torch.no_grad()
    def _features(self, modality: str, views: Views, windows: list[dict]) -> torch.Tensor:
        """float32 [W, D], on the CPU."""
        batch = self._collator("vectors", views, windows).to(self.model.device)
        return self.model.get_features(modality, task=self.task, **batch.inputs[modality]).pooler_output.float().cpu()


def known_to(views: list[Views]) -> list[str]:
    """The modalities of views that no kind of file is of."""
    return [name for one in views for name in one.names() if name not in MODALITY.values()]


def _modality(kind: str) -> str:
    return MODALITY.get(kind, kind)


def _view_of(kind: str, views: list[Views], config):
    """How the first of the views sees a kind; one of images does for videos, and the other way round, where there is no other."""
    own = [view for one in views if (view := getattr(one, _modality(kind))) is not None]
    if kind in ("image", "video"):
        own.sort(key=lambda view: (view.frames > 1) != (kind == "video"))
    if own:
        return own[0]
    return get_modality(TEXT).View(length=min(_LONGEST_TEXT, config.text_max)) if kind == TEXT else None
