"""What a check of the data found, as one record: of each source, of each task in each of its views, and of all together."""

from dataclasses import asdict, dataclass

from imp_ds.commands.check.copies import Overlap, cut_captions, padded
from imp_ds.config import RunConfig
from imp_ds.data.inspect.check import Findings
from imp_ds.data.inspect.tallies import Contents
from imp_ds.data.order.subset import Subset
from imp_ds.modalities.modality import get_modality
from imp_ds.planning.check_plan import NoPlan
from imp_ds.planning.needed_workers import Need, needed_workers
from imp_ds.planning.plan import Plan
from imp_ds.registry import MODALITIES


@dataclass(frozen=True)
class SourceReport:
    """One source: the rows that were looked at, the names of the tasks that read it, what was found."""

    subset: Subset
    tasks: list[str]
    found: Findings

    @property
    def name(self) -> str:
        return self.subset.name

    @property
    def samples(self) -> int:
        """Of the whole source."""
        return len(self.subset.reader)

    @property
    def share_left_out(self) -> float:
        """Of the task that can use the fewest of the samples."""
        return self.found.most_left_out / self.found.rows

    def class_name(self, label: int) -> str:
        names = self.subset.class_names
        return names[label] if names is not None and label < len(names) else str(label)

    def keys(self, contents: Contents) -> list[tuple[str, str]]:
        """Pairs of samples of one content."""
        return [(self.subset.key(row), self.subset.key(same)) for row, same in contents.examples]


@dataclass(frozen=True)
class CheckReport:
    """All of it. `needs` are those of `plan`'s tasks; `cores` are this machine's; `own_tokens`: whether tokens were counted by
    the tokenizer that the run will have; `overlaps`: what sources and splits have in common."""

    run: RunConfig
    split: str
    sources: list[SourceReport]
    needs: list[Need]
    plan: Plan | NoPlan
    cores: int
    own_tokens: bool
    overlaps: list[Overlap]

    @property
    def workers(self) -> int | None:
        """Of each rank."""
        return needed_workers(self.needs)

    def broken(self) -> list[SourceReport]:
        """The sources of which more is broken than a run bears."""
        return [source for source in self.sources if source.share_left_out > self.run.data.max_rejected]

    def views(self, source: SourceReport) -> list[dict]:
        """What each view of its tasks does to the captions and the lengths of a source: {"task", "tokens", "cut"} and
        {"task", "modality", "seconds", "padding"}, with shares from 0 to 1."""
        found, shares = source.found, []
        for task in source.tasks:
            views = self.run.task(task).all_views
            for length in sorted({view.text.length for view in views if view.text is not None}):
                shares.append({"task": task, "tokens": length, "cut": cut_captions(found, length)})
            for name in (name for name in MODALITIES if get_modality(name).length_fact is not None):
                for seconds in sorted({of.seconds for view in views if (of := getattr(view, name)) is not None}):
                    share = padded(found, get_modality(name).length_fact, seconds)
                    shares.append({"task": task, "modality": name, "seconds": seconds, "padding": share})
        return [share for share in shares if None not in share.values()]

    def warnings(self) -> list[str]:
        """Files that are not all there, rows without a label, labels that a task has no class for, what stands in two
        sources or splits, and why there is no plan."""
        found = [f"{source.name}: {damage}" for source in self.sources for damage in source.subset.damage]
        for source in self.sources:
            if empty := max((reasons["no label"] for reasons in source.found.left_out.values()), default=0):
                what = f"{empty:,} of {source.found.rows:,} rows that were looked at have no label"
                found.append(f"{source.name}: {what} in {source.subset.source.label!r}: they are left out")
            largest = max(source.found.labels, default=-1)
            for task in source.tasks:
                classes = self.run.task(task).needs.classes
                if classes is not None and largest >= classes:
                    what = f"{source.name} has a class {largest}, but task {task} has {classes} classes, counted from 0"
                    found.append(f"{what}: training refuses it at the start, or leaves it out where it meets it later")
        found += [str(overlap) for overlap in self.overlaps]
        return found + ([self.plan.warning] if isinstance(self.plan, NoPlan) else [])

    def record(self) -> dict:
        """As JSON has it."""
        plan = self.plan
        return {
            "recipe": self.run.name, "split": self.split, "max_rejected": self.run.data.max_rejected, "cores": self.cores,
            "sources": [_source_record(source) | {"views": self.views(source)} for source in self.sources],
            "tokens_of_the_run": self.own_tokens,
            "tasks": [_need_record(need) for need in self.needs],
            "plan": {
                "nodes": plan.nodes, "gpus": plan.gpus, "machine": plan.profile.machine if plan.profile else None,
                "precision": plan.precision, "workers_of_a_rank": self.workers,
            },
            "too_many_left_out": [source.name for source in self.broken()], "warnings": self.warnings(),
            "in_common": [asdict(overlap) for overlap in self.overlaps],
        }  # fmt: skip


def _source_record(source: SourceReport) -> dict:
    found = source.found
    return {
        "source": source.name, "tasks": source.tasks, "samples": source.samples, "looked_at": found.rows,
        "left_out": {task: dict(reasons) for task, reasons in found.left_out.items()},
        "examples": [{"key": e.key, "reason": e.reason, "detail": e.detail} for e in found.examples],
        "numbers": {name: spread.summary() for name, spread in found.spreads.items()},
        "kinds": {role: dict(kinds) for role, kinds in found.kinds.items()},
        "scripts": dict(found.scripts),
        "classes": {source.class_name(label): found.labels[label] for label in sorted(found.labels)},
        "media": _contents_record(source, found.media), "captions": _contents_record(source, found.captions),
    }  # fmt: skip


def _contents_record(source: SourceReport, contents: Contents) -> dict:
    return {
        "different": contents.different, "copies": contents.copies, "estimated": contents.every > 1,
        "same": source.keys(contents),
    }  # fmt: skip


def _need_record(need: Need) -> dict:
    return {
        "task": need.name, "share_of_steps": need.share_of_steps, "samples_per_s_of_a_worker": need.speed,
        "samples_per_s_wanted_by_a_rank": need.wanted,
    }  # fmt: skip
