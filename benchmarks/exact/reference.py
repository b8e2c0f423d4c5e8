"""What the runs of the matrix are compared with: one process, and for gradients a mixture of experts without any skill.

float32: plain torch, one AdamW over everything, no DeepSpeed. Gradients: the same model in float64, whose experts are asked
token by token. bfloat16: one process at ZeRO 1.

Shapes: B samples, L tokens of a sample, G groups, S tokens of a group, T = B * L = G * S tokens, D width, E experts.
"""

from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.exact.cases import RATE, Case, make_batch, make_run
from helpers.small_run import make_config
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.trainable import freeze_others
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.initialization import initialize_seeded
from imp_ds.moe.layer import MoELayer
from imp_ds.moe.routers.router import Router
from imp_ds.moe.routing import RouterReport
from imp_ds.tasks import Batch

GRADIENT_STEPS = 3  # the first step of each task


def plain_run(case: Case) -> dict[str, torch.Tensor]:
    """Train without DeepSpeed. "losses" and "norms" [steps], "weight/NAME" after the last step, "gradient/STEP/NAME" before
    clipping of the first step of each task, in float64, "gradient_norm/STEP", and "chosen/CALL" (see `watch_choices`)."""
    run = make_run(case)
    config = make_config(run)
    model = ImpForPreTraining(config)
    initialize_seeded(model, 0, config.initializer_range)
    freeze_others(model, run.train.trainable)
    optimizer = plain_optimizer(model, run.optimizer)
    chosen, losses, norms, found = [], [], [], {}
    watch_choices(model, chosen)
    for step in range(case.steps):
        batch = make_batch(step, case)
        if step < GRADIENT_STEPS and not case.random:
            gradients = naive_gradients(config, model.state_dict(), batch, run.train.trainable)
            found |= {f"gradient/{step}/{name}": gradient for name, gradient in gradients.items()}
            found[f"gradient_norm/{step}"] = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        loss, norm = plain_step(model, optimizer, batch, run.optimizer.clip)
        losses.append(loss)
        norms.append(norm)
    return found | summary(losses, norms, dict(model.named_parameters()), chosen)


def plain_optimizer(model: nn.Module, settings) -> torch.optim.AdamW:
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decayed, others = ([p for n, p in trained if is_kernel(n, p) == kernel] for kernel in (True, False))
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=RATE, betas=settings.betas, eps=settings.eps)


def is_kernel(name: str, parameter: torch.Tensor) -> bool:
    """What weight decay acts on: matrices, without the tables of positions and of words."""
    return parameter.ndim >= 2 and (not name.startswith("imp.embeddings.") or name.endswith("patch.weight"))


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, clip: float) -> tuple[float, float]:
    """One step of one task, with gradients of zero for what is not its own: (loss, norm before clipping)."""
    loss, _, _ = model(batch)
    optimizer.zero_grad()
    loss.backward()
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
    optimizer.step()
    return loss.item(), norm.item()


def summary(losses: list[float], norms: list[float], weights: dict[str, torch.Tensor], chosen: list[torch.Tensor]) -> dict:
    found = {"losses": torch.tensor(losses, dtype=torch.float64), "norms": torch.tensor(norms, dtype=torch.float64)}
    found |= {f"weight/{name}": value.detach().contiguous() for name, value in weights.items()}
    return found | {f"chosen/{call}": choice_TE for call, choice_TE in enumerate(chosen)}


def watch_choices(model: nn.Module, found: list[torch.Tensor]) -> None:
    """`found` grows by one bool [T, E] with every call of a router: which expert took which token."""

    def note(router: Router, args: tuple, routing) -> None:
        index_N, weight_N, count_E = routing.token_index_N, routing.weight_N, routing.count_E
        experts = router.num_experts
        count_E = torch.full((experts,), len(index_N) // experts) if count_E is None else count_E
        expert_N = torch.repeat_interleave(torch.arange(experts), count_E)
        choice_TE = torch.zeros(len(args[0]), experts, dtype=torch.bool)
        choice_TE[index_N[weight_N > 0], expert_N[weight_N > 0]] = True
        found.append(choice_TE)

    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(note)


class NaiveMoE(nn.Module):
    """The mixture of experts by its definition: every group, expert and token in a loop of its own."""

    def __init__(self, layer: MoELayer, config: ImpConfig):
        super().__init__()
        self.router, self.experts, self.config = layer.router, layer.experts, config

    def forward(self, x_BLD: torch.Tensor, valid_BL: torch.Tensor | None = None, key_B=None, mask_LL=None, counted=None):
        batch, length, width = x_BLD.shape
        valid_BL = torch.ones(batch, length, dtype=torch.bool) if valid_BL is None else valid_BL
        size = length * self.config.group_examples
        tokens_GSD, valid_GS = x_BLD.reshape(-1, size, width), valid_BL.reshape(-1, size)
        answers, z_losses, balances = zip(*(self._group(x_SD, valid_S) for x_SD, valid_S in zip(tokens_GSD, valid_GS)))
        zero = x_BLD.new_zeros(())
        report = RouterReport(torch.stack(z_losses).mean(), torch.stack(balances).mean(), zero, zero, zero)
        return torch.stack(answers).view_as(x_BLD), report

    def _group(self, x_SD: torch.Tensor, valid_S: torch.Tensor):
        logits_SE = x_SD @ self.router.weight.T
        probability_SE = logits_SE.softmax(1)
        tokens = valid_S.nonzero().flatten().tolist()
        answers = [x_SD.new_zeros(x_SD.shape[1]) for _ in x_SD]
        # not w1[expert], whose gradient would be one of all experts for every token
        w1, w2 = self.experts.w1.unbind(), self.experts.w2.unbind()
        for token, expert in self._pairs(probability_SE.tolist(), tokens):
            hidden_F = F.gelu(x_SD[token] @ w1[expert], approximate="tanh")
            answers[token] = answers[token] + self._weight(probability_SE[token], expert) * (hidden_F @ w2[expert])
        z_loss = logits_SE[tokens].logsumexp(1).square().mean()
        return torch.stack(answers), z_loss, self._balance(probability_SE, tokens)

    def _weight(self, probability_E: torch.Tensor, expert: int) -> torch.Tensor:
        """How much an expert's answer counts: its probability, or, with several choices, its share among them."""
        if self.config.router == "expert_choice" or self.config.experts_per_token == 1:
            return probability_E[expert]
        return probability_E[expert] / sum(probability_E[other] for other in self._choices(probability_E.tolist()))

    def _pairs(self, probabilities: list[list[float]], tokens: list[int]) -> list[tuple[int, int]]:
        """Which token meets which expert."""
        config, size, experts = self.config, len(probabilities), range(len(probabilities[0]))
        if config.router == "expert_choice":
            slots = round(config.capacity_factor * size / len(experts))
            wanted = {(token, expert): probabilities[token][expert] for token in tokens for expert in experts}
        else:
            slots = round(config.capacity_factor * config.experts_per_token * size / len(experts))
            wanted = {}
            for token in tokens:
                best = self._choices(probabilities[token])
                total = sum(probabilities[token][expert] for expert in best) if len(best) > 1 else 1.0
                wanted |= {(token, expert): probabilities[token][expert] / total for expert in best}
            if not config.drop_tokens:
                return list(wanted)
        of_expert = ([pair for pair in wanted if pair[1] == expert] for expert in experts)
        return [pair for pairs in of_expert for pair in sorted(pairs, key=wanted.get, reverse=True)[:slots]]

    def _choices(self, probabilities: list[float]) -> list[int]:
        """A token's own experts, the best one first."""
        order = sorted(range(len(probabilities)), key=probabilities.__getitem__, reverse=True)
        return order[: self.config.experts_per_token]

    def _balance(self, probability_SE: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        """E * sum_e (share of the choices that fell on e) * (mean probability of e)."""
        if self.config.router == "expert_choice":
            return probability_SE.new_zeros(())
        experts, total = probability_SE.shape[1], probability_SE.new_zeros(())
        choices = [expert for token in tokens for expert in self._choices(probability_SE[token].tolist())]
        for expert in range(experts):
            total = total + experts * choices.count(expert) / len(choices) * probability_SE[tokens, expert].mean()
        return total


def naive_gradients(
    config: ImpConfig, weights: dict[str, torch.Tensor], batch: Batch, trainable: list[str] | None = None
) -> dict[str, torch.Tensor]:
    """The gradient of every trained parameter in float64; zeros for what the task does not use."""
    model = ImpForPreTraining(config)
    model.load_state_dict(weights)
    freeze_others(model, trainable)
    for block in model.imp.blocks:
        if block.is_moe:
            block.feed_forward = NaiveMoE(block.feed_forward, config)
    model.double()
    # the model says float() where it wants no less than float32
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        loss, _, _ = model(batch)
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters() if p.requires_grad}


def file_of(folder: Path, case: Case) -> Path:
    return folder / f"{str(case.reference).replace(', ', '-').replace(' ', '_')}.safetensors"


def save(folder: Path, case: Case, found: dict[str, torch.Tensor]) -> None:
    save_file(found, file_of(folder, case))


def load(folder: Path, case: Case) -> dict[str, torch.Tensor]:
    return load_file(file_of(folder, case))
