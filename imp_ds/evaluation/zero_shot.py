"""Zero-shot classification: the class whose prompts lie nearest (CLIP, Radford et al., 2021, section 3.1.4; IMP, section 4).

A class vector is the mean of its prompts' unit vectors over the templates, made a unit vector again.

Shapes: N rows, K classes, M templates, P = K * M prompts, C width of a common space.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from imp_ds.errors import UserError
from imp_ds.json_files import read_json


@dataclass(frozen=True)
class ClassPrompts:
    """Class names in label order, and templates with one `{}` for the name."""

    names: list[str]
    templates: list[str]

    def prompts(self) -> list[str]:
        """Every name in every template, the templates of the first name first, [P]."""
        return [template.replace("{}", name) for name in self.names for template in self.templates]


def load_classes(path: Path, key: str) -> ClassPrompts:
    """Entry `key` of a classes.json: {"names": [...], "templates": [...]}. Raises UserError for anything else."""
    if not path.exists():
        fix = "write the file, or leave out `classes`"
        raise UserError("zero-shot evaluation finds no class names", got=path, fix=fix)
    entries = read_json(path)
    if not isinstance(entries, dict) or key not in entries:
        raise UserError(f"{path} has no such entry", got=key, allowed=", ".join(entries) if isinstance(entries, dict) else None)
    entry = entries[key]
    lists = [entry.get(field) if isinstance(entry, dict) else None for field in ("names", "templates")]
    if not all(isinstance(part, list) and part and all(isinstance(text, str) for text in part) for part in lists):
        raise UserError(f'entry "{key}" of {path} is not usable', allowed='{"names": [texts], "templates": [texts with {}]}')
    bad = [template for template in lists[1] if template.count("{}") != 1]
    if bad:
        raise UserError(f'entry "{key}" of {path}: a template needs exactly one {{}}', got=bad[0])
    return ClassPrompts(*lists)


def class_vectors(prompts_PC: torch.Tensor, templates: int) -> torch.Tensor:
    """Unit vectors [K, C] of the classes from those of their prompts, in the order of `ClassPrompts.prompts`."""
    return F.normalize(prompts_PC.view(-1, templates, prompts_PC.shape[-1]).mean(1), dim=-1)


def accuracy(vectors_NC: torch.Tensor, classes_KC: torch.Tensor, label_N: torch.Tensor, k: int = 1) -> float:
    """Share of rows whose own class is among the k nearest. Another class at the same distance counts as nearer, and so
    does one whose score is not a number: a collapsed or broken model scores 0, not chance."""
    return _found(vectors_NC, classes_KC, label_N, k).double().mean().item()


def mean_class_recall(vectors_NC: torch.Tensor, classes_KC: torch.Tensor, label_N: torch.Tensor) -> float:
    """The mean over the classes that there are rows of of the share of these rows whose own class is the nearest: where classes
    are of unlike size, rare ones count as much as others."""
    found_N = _found(vectors_NC, classes_KC, label_N, 1).double()
    rows_K = label_N.bincount(minlength=len(classes_KC))
    found_K = torch.zeros(len(classes_KC), dtype=found_N.dtype, device=found_N.device).index_add_(0, label_N, found_N)
    return (found_K / rows_K)[rows_K > 0].mean().item()


def _found(vectors_NC: torch.Tensor, classes_KC: torch.Tensor, label_N: torch.Tensor, k: int) -> torch.Tensor:
    """Whether each row's own class is among the k nearest, bool [N]."""
    scores_NK = vectors_NC @ classes_KC.T
    own_N1 = scores_NK.gather(1, label_N[:, None])
    return (~(scores_NK < own_N1)).sum(1) <= k
