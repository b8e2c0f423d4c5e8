"""What a check of the data found, as tables for a terminal."""

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from imp_ds.commands.check.report import CheckReport, SourceReport
from imp_ds.data.inspect.check import first_examples
from imp_ds.data.inspect.tallies import Contents
from imp_ds.planning.check_plan import NoPlan
from imp_ds.terminal.printable import printable

_UNITS = {
    "bytes": "bytes of a file",
    "captions": "captions of a sample",
    "words": "words of a text",
    "tokens": "tokens of a text",
    "token ids": "token ids of a conversation",
}
_MOST = 6  # of a list that is shown


def show(report: CheckReport, console: Console) -> None:
    """Print the report: each source, the tasks' speeds and what a plan wants of them, warnings, and the conclusion."""
    for source in report.sources:
        _show_source(source, report, console)
    console.print(_tasks(report))
    console.print(_workers(report))
    for warning in report.warnings():
        console.print(f"warning: {_safe(warning)}")
    for source in report.broken():
        share = f"{source.share_left_out:.1%} of the {source.found.rows:,} that were looked at"
        limit = f"data.max_rejected = {report.run.data.max_rejected:.1%}, a run would stop"
        console.print(f"too many samples of {_safe(source.name)} cannot be used: {share}; {limit}", style="bold red")


def _safe(text: str) -> str:
    """What comes from the data, for the console: no markup, no control characters."""
    return escape(printable(text))


def _show_source(source: SourceReport, report: CheckReport, console: Console) -> None:
    found = source.found
    looked_at = "all" if found.rows == source.samples else f"{found.rows:,}"
    console.print(f"\n{_safe(source.name)}: {source.samples:,} samples, {looked_at} looked at", style="bold", highlight=False)
    for line in _lines(source, report):
        console.print(f"  {_safe(line)}", highlight=False)
    if found.spreads:
        console.print(_numbers(source))


def _lines(source: SourceReport, report: CheckReport) -> list[str]:
    found, lines = source.found, []
    for role, kinds in found.kinds.items():
        lines.append(f"{role}: {_listed(kinds)}")
    if found.media.different:
        lines.append(f"media files: {_copies(found.media)}")
    if found.captions.different:
        lines.append(f"captions: {_copies(found.captions)}; scripts: {_listed(found.scripts, shares=True)}")
        if "tokens" in found.spreads and not report.own_tokens:
            lines.append("tokens: of a tokenizer trained on these captions; the run's will be trained on all")
    for share in report.views(source):
        if "cut" in share:
            lines.append(f"{share['task']}: a view of {share['tokens']} tokens cuts {share['cut']:.1%} of the captions")
        else:
            view = f"a view of {share['seconds']:g} s of {share['modality']}"
            lines.append(f"{share['task']}: {view} is {share['padding']:.1%} padding")
    if found.labels:
        lines.append(_classes(source))
    for task, reasons in found.left_out.items():
        share = f"{reasons.total():,} of {found.rows:,} ({reasons.total() / found.rows:.1%})"
        lines.append(f"{task} leaves out {share}: {_listed(reasons, most=None)}" if reasons else f"{task} leaves out none")
    for rejection in first_examples(found.examples, _MOST):
        lines.append(f"  {rejection.key}: {rejection.reason} ({rejection.detail})")
    for key, same in source.keys(found.media)[:_MOST]:
        lines.append(f"  {same}: the same bytes as {key}")
    return lines


def _copies(contents: Contents) -> str:
    about = "about " if contents.every > 1 else ""
    note = f" (counted in 1 of {contents.every} of them)" if contents.every > 1 else ""
    return f"{about}{contents.different:,} different, {about}{contents.copies:,} copies{note}"


def _listed(counts: Counter, shares: bool = False, most: int | None = _MOST) -> str:
    total = counts.total()
    shown = [f"{name} {count / total:.1%}" if shares else f"{name} {count:,}" for name, count in counts.most_common(most)]
    return ", ".join(shown) + (f" and {len(counts) - len(shown)} more" if len(counts) > len(shown) else "")


def _classes(source: SourceReport) -> str:
    """How many classes, and those with the most and the fewest samples."""
    labels, names = source.found.labels, source.subset.class_names
    named = lambda pairs: ", ".join(f"{source.class_name(label)} {count:,}" for label, count in pairs)  # noqa: E731
    ranked = labels.most_common()
    if len(ranked) <= 2 * _MOST:
        shown = named(ranked)
    else:
        shown = f"{named(ranked[: _MOST // 2])} ... {named(ranked[-_MOST // 2 :])}"
    of = f" of {len(names)}" if names is not None else ""
    return f"classes: {len(labels)}{of}: {shown}"


def _numbers(source: SourceReport) -> Table:
    table = Table("", "least", "median", "95 %", "largest", "mean")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, spread in source.found.spreads.items():
        summary = spread.summary()
        values = (_number(summary[column]) for column in ("least", "median", "95 %", "largest", "mean"))
        table.add_row(_UNITS.get(name, name), *values)
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def _tasks(report: CheckReport) -> Table:
    table = Table(title="Speed of one worker, and what a rank of the plan wants", title_justify="left")
    for column in ("task", "share of steps", "samples/s of a worker", "samples/s wanted", "workers while its steps last"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for need in report.needs:
        speed = "no sample can be used" if need.speed is None else f"{need.speed:,.0f}"
        wanted = "not known" if need.wanted is None else f"{need.wanted:,.0f}"
        both = need.speed is not None and need.wanted is not None
        table.add_row(need.name, f"{need.share_of_steps:.1%}", speed, wanted, f"{need.wanted / need.speed:,.2f}" if both else "")
    return table


def _workers(report: CheckReport) -> str:
    plan, workers = report.plan, report.workers
    where = f"{plan.nodes} node(s) x {plan.gpus}"
    if isinstance(plan, NoPlan):
        return f"workers for {where}: not known, there is no such plan (see the last warning)"
    if workers is None:
        why = (
            "no times are known: imp_ds profile FILE, then --profile FILE"
            if not plan.times
            else "a task has no sample to be timed"
        )
        return f"workers for {where}: not known, {why}"
    machine = plan.profile.machine + (", of which some figures are assumed" if plan.profile.assumed else "")
    wanted = f"data.workers = {workers}, {workers * plan.gpus} on each node"
    here = f"this machine has {report.cores} core(s), the run has data.workers = {report.run.data.workers}"
    return f"workers for {where} ({machine}, {plan.precision}): {wanted}; {here}"
