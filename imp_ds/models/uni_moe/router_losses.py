"""The auxiliary losses of the routers of a language model, each off where its coefficient is 0.

    balance       E * sum_e (share of the choices on e) * (mean probability of e), of each example (`imp_ds.moe.routing`)
    z             (logsumexp of the logits)^2 of a token (ST-MoE)
    preference    |probability of e - 1 where e is a preferred expert of the token's kind, else 0|, the mean over e (L1)
    separation    1 - KL(p || q), where p and q are the mean probabilities over the tokens of two kinds

The last two are of Uni-MoE's release with eight experts (arXiv 2405.11273). Preference is summed over the tokens of the kinds
that have preferred experts and divided by all tokens of the example, so that a kind counts by its share of them. Separation is
the mean over the pairs of kinds that an example has, in both directions. There the mean probabilities go through one more
softmax, which makes all of them nearly equal; here they are taken as they are.

Each is the mean over examples (for separation: those of two kinds or more), and the sum over layers.

Shapes: B examples, L tokens of one, E experts, M kinds of tokens.
"""

import torch
import torch.nn.functional as F
from torch import nn

from imp_ds.errors import UserError
from imp_ds.models.uni_moe.experts import KINDS, ExpertFeedForward, expert_feed_forwards
from imp_ds.moe.routing import RouterReport

SMALLEST = torch.finfo(torch.float32).tiny  # of a probability in a logarithm


def router_losses(language_model: nn.Module, config) -> tuple[torch.Tensor | None, list[RouterReport]]:
    """The routers' weighted loss of the pass just made, a float32 scalar, None where all coefficients are 0; and the report of
    each mixture, by layer, without gradients. To be called once after a pass.

    config: router_aux_loss_coef, router_z_loss_coef, router_l1_coef, router_kl_coef; expert_preferences, {kind: [expert, ...]},
        for the third.
    Raises UserError where routers would learn nothing from it, since activation checkpointing is of the reentrant kind.
    """
    total, reports = None, []
    for mixture in expert_feed_forwards(language_model):
        report, logits_BLE = mixture.take()
        mixture.facts.collects = False
        reports.append(mixture.report)
        loss = _loss_of(mixture, report, logits_BLE, config)
        if loss is not None:
            total = loss if total is None else total + loss
    return total, reports


def _loss_of(mixture: ExpertFeedForward, report: RouterReport, logits_BLE: torch.Tensor, config) -> torch.Tensor | None:
    facts, losses = mixture.facts, []
    losses += [config.router_aux_loss_coef * report.balance_loss] if config.router_aux_loss_coef else []
    losses += [config.router_z_loss_coef * report.z_loss] if config.router_z_loss_coef else []
    if config.router_l1_coef or config.router_kl_coef:
        probability_BLE = logits_BLE.softmax(-1)
        member_BLM = kind_members(facts.kind_BL, facts.valid_BL, probability_BLE)
        if config.router_l1_coef:
            wanted_ME = preferred_experts(config.expert_preferences, probability_BLE.shape[-1], probability_BLE.device)
            losses.append(config.router_l1_coef * preference_loss(probability_BLE, member_BLM, wanted_ME))
        if config.router_kl_coef:
            losses.append(config.router_kl_coef * separation_loss(probability_BLE, member_BLM))
    if not losses:
        return None
    if torch.is_grad_enabled() and mixture.moe.router.weight.requires_grad and not logits_BLE.requires_grad:
        raise UserError(
            "the losses of the routers reach no router: the pass was made without gradients",
            fix='activation checkpointing with {"use_reentrant": False}, or all coefficients of the routers\' losses 0',
        )  # fmt: skip
    return sum(losses)


def kind_members(kind_BL: torch.Tensor | None, valid_BL: torch.Tensor | None, like_BLE: torch.Tensor) -> torch.Tensor:
    """1.0 where a token is of a kind, [B, L, M]; padding is of none."""
    if kind_BL is None:
        kind_BL = like_BLE.new_zeros(like_BLE.shape[:2], dtype=torch.int64)
    member_BLM = F.one_hot(kind_BL, len(KINDS)).to(like_BLE.dtype)
    return member_BLM if valid_BL is None else member_BLM * valid_BL.unsqueeze(-1)


def preferred_experts(preferences: dict[str, list[int]] | None, num_experts: int, device: torch.device) -> torch.Tensor:
    """1.0 where an expert is preferred by a kind, [M, E]; a row of zeros for a kind that prefers none; UniMoeConfig has refused
    kinds and experts that are not there. Raises UserError where there are no preferences at all."""
    if not preferences:
        raise UserError(
            "the loss on preferred experts (router_l1_coef) needs to know them",
            got=f"expert_preferences = {preferences}",
            allowed=f'{{kind: [expert, ...]}} with the kinds {", ".join(KINDS)} and experts 0 to {num_experts - 1}',
        )  # fmt: skip
    wanted_ME = torch.zeros(len(KINDS), num_experts)
    for kind, experts in preferences.items():
        wanted_ME[KINDS.index(kind), experts] = 1.0
    return wanted_ME.to(device)


def preference_loss(probability_BLE: torch.Tensor, member_BLM: torch.Tensor, wanted_ME: torch.Tensor) -> torch.Tensor:
    """Mean over examples of: the tokens of kinds with preferred experts, each the mean over E of its distance from them,
    summed, and divided by the number of all tokens."""
    distance_BL = (probability_BLE - member_BLM @ wanted_ME).abs().mean(-1)
    counts_BL = member_BLM @ (wanted_ME.sum(1) > 0).to(member_BLM.dtype)
    return ((distance_BL * counts_BL).sum(1) / member_BLM.sum((1, 2)).clamp(min=1)).mean()


def separation_loss(probability_BLE: torch.Tensor, member_BLM: torch.Tensor) -> torch.Tensor:
    """Mean over the examples with two kinds or more of: mean over ordered pairs of their kinds of 1 - KL; 0 without any."""
    tokens_BM = member_BLM.sum(1)
    mean_BME = (member_BLM.transpose(1, 2) @ probability_BLE) / tokens_BM.clamp(min=1).unsqueeze(-1)
    log_BME = mean_BME.clamp(min=SMALLEST).log()
    kl_BMM = (mean_BME * log_BME).sum(-1, keepdim=True) - mean_BME @ log_BME.transpose(1, 2)
    there_BM = tokens_BM > 0
    pair_BMM = there_BM.unsqueeze(2) & there_BM.unsqueeze(1) & ~torch.eye(len(KINDS), dtype=torch.bool, device=there_BM.device)
    pairs_B = pair_BMM.sum((1, 2))
    loss_B = torch.where(pair_BMM, 1.0 - kl_BMM, 0.0).sum((1, 2)) / pairs_B.clamp(min=1)
    return loss_B.sum() / (pairs_B > 0).sum().clamp(min=1)
