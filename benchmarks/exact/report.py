"""The results of the exactness matrix as a page: what is compared, the worst of everything, and a table for each router."""

import datetime
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version

from benchmarks.exact.bounds import BF16_LOSS, FLOAT32, Result, failures
from benchmarks.exact.cases import BATCH, CLIP, ROUTERS, STEPS, VARIANTS, Case

QUANTITIES = {
    "loss": "losses",
    "weight": "weights",
    "experts": "gradients of experts",
    "rest": "other gradients",
    "norm": "gradient norm",
}
INTRODUCTION = f"""\
# Exactness

Does the number of ranks change what is learned? Does expert parallelism, a ZeRO stage, offload? Each combination trains the same
small model ({STEPS} steps, three alternating tasks, {BATCH} samples a step, 4 experts, gradients clipped at {CLIP}, which all of
them exceed) under the `deepspeed` launcher, and is compared with one process.

- float32: with one process of plain torch, without DeepSpeed. *Losses* of all steps and *weights* after them are given as
  absolute differences, the *gradient norm* of all steps as a relative one. *Gradients* are what reached the optimizer after
  clipping, in the first step of each task (Adam's first moment shows it), against a model in float64 whose experts are asked
  token by token, relative to the largest element. All must be within {FLOAT32:.0e}.
- bfloat16: with one process at ZeRO 1, losses alone. Rounded in two ways, a number differs by up to 2^-8; a similarity
  is divided by a temperature of 0.2, and a loss is a difference of two of them: within {BF16_LOSS:.3f}. *Choices* is the share of
  the routers' choices that differ: where an expert likes two tokens equally, rounding decides, and nothing can hold that equal.
  Weights are no measure there: Adam steps as far for a gradient that is all rounding as for any other.
"""
REMARKS = """\
At ZeRO 0 nothing is clipped, since that is refused; so are bfloat16 and offload there. At ZeRO 1 bfloat16
runs without `data_types.grad_accum_dtype`, elsewhere with gradients added up in float32.
"""
OUTSIDE = """\
## Outside of training

Experts that choose among tokens, or drop some, do it in training inside groups of whole examples. In evaluation, `predict` and an
exported model (whatever is in `eval()`) each example is a group of its own: its vector depends neither on what is beside it in
the batch, nor on the batch size, nor on ranks, nor on padding. A text has the experts' slots of one padded as in training
(`text_length` in config.json), or of its own words where it has more. Only rounding is left: sums of other shapes, about 1e-6
(`tests/models/test_company.py`).

A model that was trained with groups of several examples pays for it, since its experts have learned to share their slots among
examples: an expert now has as many slots in an example that suits it as in one that does not. The recipe `digits` with
`model.group_examples=null` and 1,200 steps, one checkpoint, test split, evaluated in both ways:

| | routed together, in batches of 64 | routed alone |
| --- | ---: | ---: |
| zero-shot images | 96.9 % | 96.4 % |
| zero-shot videos | 66.0 % | 64.0 % |
| zero-shot speech | 89.5 % | 87.5 % |
| head of images | 97.5 % | 97.2 % |
| head of speech | 92.1 % | 90.5 % |
| R@10 text to image | 68.8 % | 66.6 % |
| the whole evaluation | 15.9 s | 17.0 s |

A model that was trained with `group_examples=1`, as `digits` is, pays nothing: it was trained so.
"""


def page(results: list[Result], command: str, seconds: float) -> str:
    """The whole page. `command` made it, in `seconds`."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers"))
    made = (
        f"`{command}` made this page on {datetime.date.today()} in {seconds / 60:.0f} minutes: {platform.machine()}, "
        f"{os.cpu_count()} cores, one thread for each rank, gloo; "
        f"Python {platform.python_version()}, {packages}."
    )
    parts = [INTRODUCTION, made + "\n", *_summary(results), REMARKS]
    for router in ROUTERS:
        parts += _router(router, [r for r in results if r.case.router == router and not r.case.variant])
    return "\n".join([*parts, *_variants(results), *_refused(results), OUTSIDE])


def _summary(results: list[Result]) -> list[str]:
    refused = sum(result.refused is not None for result in results)
    bad = failures(results)
    good = len(results) - refused - len(bad)
    lines = [
        "## Summary",
        "",
        f"{len(results)} combinations: {good} within their bounds, {len(bad)} not, {refused} refused.",
        "",
        *(f"- **{result.case}**: {result.shown()}" for result in bad),
        *([""] if bad else []),
        "| largest difference | value | bound | of |",
        "| --- | ---: | ---: | --- |",
    ]
    for bf16, bound, quantities in ((False, FLOAT32, QUANTITIES), (True, BF16_LOSS, ["loss"])):
        measured = [result for result in results if result.found and result.case.bf16 == bf16]
        for quantity in quantities:
            worst = max((r for r in measured if quantity in r.found), key=lambda r: r.found[quantity], default=None)
            if worst is not None:
                precision = "bfloat16" if bf16 else "float32"
                value = worst.found[quantity]
                lines.append(f"| {precision}: {QUANTITIES[quantity]} | {value:.1e} | {bound:.1e} | {worst.case} |")
    return [*lines, ""]


def _router(router: str, results: list[Result]) -> list[str]:
    """A row for each layout, with the larger difference of its runs without and with offload."""
    layouts = sorted({(r.case.ranks, r.case.ep_size, r.case.stage) for r in results if r.refused is None})
    if not layouts:
        return []
    heads = [*QUANTITIES.values(), "bf16 losses", "bf16 choices"]
    lines = [f"## {router.capitalize()}", "", "| ranks | ep | ZeRO | offload | " + " | ".join(heads) + " | |"]
    lines.append("| ---: | ---: | ---: | --- |" + " ---: |" * len(heads) + " --- |")
    for ranks, ep_size, stage in layouts:
        of = [r for r in results if (r.case.ranks, r.case.ep_size, r.case.stage) == (ranks, ep_size, stage)]
        of = [r for r in of if r.refused is None]
        offload = "both" if len({r.case.offload for r in of}) == 2 else "with" if of[0].case.offload else "without"
        single, half = [r for r in of if not r.case.bf16], [r for r in of if r.case.bf16]
        cells = [_worst(single, quantity) for quantity in QUANTITIES] + [_worst(half, "loss"), _worst(half, "choices")]
        lines.append(f"| {ranks} | {ep_size} | {stage} | {offload} | {' | '.join(cells)} | {_outcome(of)} |")
    return [*lines, ""]


def _variants(results: list[Result]) -> list[str]:
    lines = [
        "## What must change nothing", "",
        "Float32; the largest difference among the runs of a row. *Micro-batches*: one of them is in "
        "memory at a time; the reference is the undivided one. *Dropout and noise*: of the routers, drawn from the "
        "samples' keys, in both runs. *Frozen*: not trained, in both runs, and as it was bit for bit; *beside experts*: "
        "half of each expert is trained. *Against float32*: bfloat16, with the bound of bfloat16 for losses alone. "
        "DropToken belongs to the loader and is held to one process by "
        "`tests/distributed/test_rank_free_randomness.py`.", "",
        "| | ranks | ZeRO | routers | " + " | ".join(QUANTITIES.values()) + " | |",
        "| --- | ---: | --- | --- |" + " ---: |" * len(QUANTITIES) + " --- |",
    ]  # fmt: skip
    accepted = [result for result in results if result.case.variant and result.refused is None]
    for variant in VARIANTS:
        for ranks in sorted({r.case.ranks for r in accepted if r.case.variant == variant}):
            of = [r for r in accepted if (r.case.variant, r.case.ranks) == (variant, ranks)]
            stages, routers = _listed(r.case.stage for r in of), _listed({r.case.router for r in of})
            routers = "all" if routers == _listed(ROUTERS) else routers
            cells = " | ".join(_worst(of, quantity) for quantity in QUANTITIES)
            lines.append(f"| {variant} | {ranks} | {stages} | {routers} | {cells} | {_outcome(of)} |")
    return [*lines, ""] if accepted else []


def _refused(results: list[Result]) -> list[str]:
    """Each reason once, with the combinations that it stops."""
    reasons = {}
    for result in (result for result in results if result.refused is not None):
        reasons.setdefault(result.refused.splitlines()[0], []).append(result.case)
    lines = ["## Refused at start", "", "| reason | combinations |", "| --- | --- |"]
    return [*lines, *(f"| {reason} | {_listed_cases(cases)} |" for reason, cases in reasons.items()), ""] if reasons else []


def _listed_cases(cases: list[Case]) -> str:
    stages = f"ZeRO {_listed(case.stage for case in cases)}"
    variants = _listed(case.variant for case in cases if case.variant)
    precision = _listed("bfloat16" if case.bf16 else "float32" for case in cases)
    offload = "" if len({case.offload for case in cases}) == 2 else "with offload" if cases[0].offload else "without offload"
    clip = "" if len({case.clip for case in cases}) == 2 else "clipped" if cases[0].clip else "not clipped"
    listed = ", ".join(filter(None, [variants, stages, precision, offload, clip]))
    return f"{len(cases)}: {listed}, {_listed(case.ranks for case in cases)} ranks"


def _worst(results: list[Result], quantity: str) -> str:
    values = [result.found[quantity] for result in results if result.found and quantity in result.found]
    return f"{max(values):.0e}" if values else ""


def _outcome(results: list[Result]) -> str:
    return "ok" if not failures(results) else "**fails**"


def _listed(values: Iterable) -> str:
    return ", ".join(map(str, sorted(set(values))))
