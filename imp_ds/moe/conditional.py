"""Linear layers that differ by condition: of each token, by the experts that a router chooses for it, or of a whole segment.

    RoutedLinear       experts for each token: the sum of their answers
    MergedLinear       experts for each segment: their weighted sum is one matrix, which all tokens of the segment meet
    LinearByCondition  a matrix for each condition that is known beforehand: what is left of a MergedLinear when it is trained

One decision may serve several linear layers of a block: a layer without a router takes the decision that it is given.

Shapes: B batch, L tokens of an example, T = B * L flat tokens, I inputs and O outputs of a linear layer, E experts.
"""

from typing import NamedTuple

import torch
from torch import nn

from imp_ds.moe.dispatch import LocalDispatcher
from imp_ds.moe.experts import LinearExperts
from imp_ds.moe.grouping import Grouping
from imp_ds.moe.routers.router import Router
from imp_ds.moe.routing import Condition, Counted, RouterReport, Routing, Segment
from imp_ds.moe.soft_merging import LocalMerger, MergedExperts, MergeRouter, MergeWeights, merge_report

Decision = Routing | tuple[MergeWeights, ...]


class SequenceFacts(NamedTuple):
    """What a block knows of its tokens beside themselves.

    valid_BL: False at padding; mask_LL: True where the row's token sees the column's; segments: of the sequence, whose lengths
    sum to L; key_BS: a random key of each sample for each random site of a block, int64. None: no padding, everything is seen,
    nothing is random. counted: each example routes alone, and counts as so many tokens; None: examples share groups.
    attentions: where each layer lays its attention weights, [B, H, L, tokens that are seen]; None: nobody asks for them.
    """

    valid_BL: torch.Tensor | None = None
    mask_LL: torch.Tensor | None = None
    segments: tuple[Segment, ...] = ()
    key_BS: torch.Tensor | None = None
    counted: Counted | None = None
    attentions: list[torch.Tensor] | None = None

    @property
    def target_side(self) -> bool:
        """Whether the sequence is of the candidates, as its first segment is."""
        return bool(self.segments) and self.segments[0].condition.target

    def key_B(self, site: int) -> torch.Tensor | None:
        return None if self.key_BS is None else self.key_BS[:, site]


class ConditionalLinear(nn.Module):
    """forward: (x [B, L, I], the sequence, the decision of another linear layer or None) -> (y [B, L, O], the decision, and its
    report, None where no decision was made)."""

    def forward(
        self, x_BLI: torch.Tensor, sequence: SequenceFacts, decision: Decision | None = None
    ) -> tuple[torch.Tensor, Decision | None, RouterReport | None]:
        raise NotImplementedError


class RoutedLinear(ConditionalLinear):
    """Each token's answer is the weighted sum of those of its experts; zeros for a token that no expert took.

    router: a Router; None: the decision is always given. site: the router's among the random sites of a block.
    """

    def __init__(
        self, in_features: int, out_features: int, num_experts: int, router: Router | None, grouping: Grouping, *, site: int
    ):
        super().__init__()
        self.grouping, self.site, self.router = grouping, site, router
        self.experts = LinearExperts(in_features, out_features, num_experts)
        self.dispatcher = LocalDispatcher()

    def forward(self, x_BLI, sequence, decision=None):
        x_TI, report = x_BLI.reshape(-1, x_BLI.shape[2]), None
        if self.router is not None:
            key_B = sequence.key_B(self.site)
            context = self.grouping.context(x_BLI, sequence.valid_BL, key_B, sequence.mask_LL, sequence.counted)
            decision = self.router(x_TI, context)
            x_TI, report = decision.x_TD, decision.report
        return self.dispatcher(x_TI, decision, self.experts).view(*x_BLI.shape[:2], -1), decision, report


class MergedLinear(ConditionalLinear):
    """Each segment's experts are summed to one matrix that all its tokens meet; a decision is MergeWeights for each segment.

    router: a MergeRouter; None: the decision is always given. site: the router's among the random sites of a block.
    """

    def __init__(self, in_features: int, out_features: int, num_experts: int, router: MergeRouter | None, *, site: int):
        super().__init__()
        self.site, self.router = site, router
        self.experts = MergedExperts(in_features, out_features, num_experts)
        self.dispatcher = LocalMerger()

    def forward(self, x_BLI, sequence, decision=None):
        report = None
        if self.router is not None:
            decision = tuple(self._decide(segment.condition) for segment in sequence.segments)
            report = mean_report([merge_report(weights) for weights in decision])
        parts = x_BLI.split([segment.length for segment in sequence.segments], dim=1)
        answers = [x @ self.dispatcher(weights, self.experts) for x, weights in zip(parts, decision)]
        return join(answers), decision, report

    def _decide(self, condition: Condition) -> MergeWeights:
        key_1 = None if condition.key_1S is None else condition.key_1S[:, self.site]
        return self.router(condition.known, key_1)


class LinearByCondition(ConditionalLinear):
    """One plain linear layer for each condition of a merged model; given by `Condition.copy`."""

    def __init__(self, in_features: int, out_features: int, copies: int):
        super().__init__()
        self.copies = nn.ModuleList(nn.Linear(in_features, out_features, bias=False) for _ in range(copies))

    def forward(self, x_BLI, sequence, decision=None):
        parts = x_BLI.split([segment.length for segment in sequence.segments], dim=1)
        answers = [self.copies[segment.condition.copy](x) for x, segment in zip(parts, sequence.segments)]
        return join(answers), None, None


def join(parts: list[torch.Tensor]) -> torch.Tensor:
    """Tensors [B, L, ...] side by side along L; a single one as it is, not a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def mean_report(reports: list[RouterReport]) -> RouterReport:
    """Of several calls of one router on parts of the same tokens."""
    return RouterReport(*(torch.stack(values).mean(0) for values in zip(*reports)))


def layer_report(reports: list[RouterReport]) -> RouterReport | None:
    """Of all decisions of one layer: the losses are sums, the rest means; None where nothing was decided."""
    if len(reports) < 2:
        return reports[0] if reports else None
    mean = mean_report(reports)
    return mean._replace(z_loss=mean.z_loss * len(reports), balance_loss=mean.balance_loss * len(reports))
