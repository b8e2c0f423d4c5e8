"""A plan as tables for a terminal."""

from rich.console import Console
from rich.table import Table

from imp_ds.planning.choice import GIB, advice
from imp_ds.planning.plan import Plan


def show(plan: Plan, console: Console) -> None:
    """Print the plan: parameters, tasks, memory of a rank, times, expert groups, warnings."""
    ranks = plan.nodes * plan.gpus
    console.print(f"{plan.name}: {plan.nodes} node(s) x {plan.gpus} = {ranks} rank(s), ep_size {plan.ep_size}, {plan.precision}")
    for table in (_parameters(plan), _trained(plan), _tasks(plan), _memory(plan)):
        if table is not None:
            console.print(table)
    if plan.times:
        console.print(_times(plan))
        known = plan.profile
        console.print(f"profile of {known.machine}, {known.precision}, {known.ranks} rank(s); nothing overlaps")
        if plan.profile.assumed:
            console.print(f"assumed, not measured (--profile FILE replaces all of it): {'; '.join(plan.profile.assumed)}")
    else:
        console.print(f"no times: no hardware profile is known for {plan.precision}; imp_ds profile FILE measures them")
    if plan.choices:
        console.print(_choices(plan))
        console.print(advice(plan.choices, plan.profile.memory_gib))
    if plan.groups:
        console.print(_groups(plan))
    for warning in plan.warnings:
        console.print(f"warning: {warning}")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or column in ("meaning", "nodes") else "right")
    return table


def _parameters(plan: Plan) -> Table:
    p = plan.parameters
    table = _table("Parameters", "part", "number", "meaning")
    rows = (
        ("total", p.total, "all of the model"),
        ("layers", p.encoder, "its Transformer layers, with their experts"),
        ("experts", p.experts, "of these, in all MoE layers"),
        ("one expert", p.one_expert, "of one layer"),
        ("active per token", p.active, "of the layers, mean over tokens"),
    )
    for name, number, meaning in rows:
        table.add_row(name, f"{number / 1e6:,.2f} M", meaning)
    return table


def _trained(plan: Plan) -> Table | None:
    if plan.trained is None:
        return None
    table = _table("Trained tensors", "tensor", "shape", "of them", "number")
    for one in plan.trained.tensors:
        table.add_row(one.name, " x ".join(map(str, one.shape)) or "1", f"{one.count:,}", f"{one.parameters:,}")
    for name, number in (("trained in all", plan.trained.trained), ("frozen", plan.trained.frozen)):
        table.add_row(name, "", "", f"{number:,}")
    return table


def _tasks(plan: Plan) -> Table:
    table = _table("Tasks", "task", "tokens of an example", "batch", "tokens per step", "share of steps", "share of tokens")
    for task in plan.tasks:
        tokens = ", ".join(f"{modality} {count}" for modality, count in task.tokens.items())
        table.add_row(
            task.name,
            tokens,
            f"{task.batch_size:,}",
            f"{task.tokens_per_step:,}",
            f"{task.share_of_steps:.2%}",
            f"{task.share_of_tokens:.2%}",
        )
    mean = sum(task.share_of_steps * task.tokens_per_step for task in plan.tasks)
    table.add_row("mean of a step", "", "", f"{mean:,.0f}", "", "")
    return table


def _memory(plan: Plan) -> Table:
    parts = ("weights", "gradients", "optimizer", "buffers", "activations (estimate)", "sum")
    table = _table("Memory of a rank, GiB", "ZeRO", *parts)
    for memory in plan.memory:
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.buffers, memory.activations, memory.total)
        table.add_row(str(memory.stage), *(f"{part / GIB:,.2f}" for part in parts))
    return table


def _times(plan: Plan) -> Table:
    title = f"Time of a step at ZeRO {plan.stage}, ms (predicted)"
    table = _table(title, "task", "compute", "engine", "communication", "sum", "samples/s", "TF/s of a rank")
    ranks = plan.nodes * plan.gpus
    for task, time in zip(plan.tasks, plan.times):
        sent = ", ".join(f"{name} {1e3 * s:,.2f}" for name, s in time.communication.items() if s)
        table.add_row(
            task.name,
            *(f"{1e3 * part:,.2f}" for part in (time.compute, time.engine)),
            sent or "0",
            f"{1e3 * time.seconds:,.2f}",
            f"{task.batch_size / time.seconds:,.0f}",
            f"{time.flops / time.seconds / ranks / 1e12:,.3g}",
        )
    table.add_row("mean of a step", "", "", "", f"{1e3 * plan.step_seconds:,.2f}", "", "")
    return table


def _choices(plan: Plan) -> Table:
    table = _table(
        f"Sizes of expert groups at ZeRO {plan.stage}", "ep_size", "nodes of a group", "memory of a rank, GiB", "step, ms",
        "exchange of tokens, ms", "gradients and weights, ms",
    )  # fmt: skip
    for choice in plan.choices:
        sent = choice.communication
        table.add_row(
            str(choice.ep_size), str(choice.nodes_of_group), f"{choice.memory / GIB:,.2f}", f"{1e3 * choice.seconds:,.2f}",
            f"{1e3 * sent['tokens to experts']:,.2f}", f"{1e3 * (sent['gradients'] + sent['weights']):,.2f}",
        )  # fmt: skip
    return table


def _groups(plan: Plan) -> Table:
    table = _table(f"Expert groups: {len(plan.groups)}", "group", "ranks", "nodes", "experts of each rank")
    for i, group in enumerate(plan.groups):
        if 4 <= i < len(plan.groups) - 1:  # they are all alike: the first ones and the last are enough
            if i == 4:
                table.add_row("...", "", "", "")
            continue
        ranks = f"{group.ranks[0]}-{group.ranks[-1]}" if len(group.ranks) > 1 else str(group.ranks[0])
        held = ", ".join(f"{e[0]}-{e[-1]}" if len(e) > 1 else str(e[0]) for e in group.experts)
        table.add_row(str(i), ranks, ", ".join(map(str, group.nodes)), held)
    return table
