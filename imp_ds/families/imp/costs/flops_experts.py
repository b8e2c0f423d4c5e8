"""The kernels of what has experts: a feed-forward that is a mixture as a whole, or a linear layer that hangs on a condition.

Shapes: T tokens, N rows of the experts, D width, F feed-forward width, I inputs and O outputs of a linear layer, E experts, K
experts of a token or a condition.
"""

from dataclasses import replace

from imp_ds.costs import FLOAT32, Kernel, passes, product
from imp_ds.models.imp.conditions import attribute_names
from imp_ds.models.imp.configuration_imp import LINEAR_PAIRS, ImpConfig
from imp_ds.moe.grouping import examples_per_group

EXPERTS = ("feed_forward.experts.",)  # what the names of a mixture's weights begin with in a block


def expert_rows(config: ImpConfig, samples: int, length: int) -> int:
    """Rows that the experts of one MoE layer or linear layer compute for `samples` samples of `length` tokens. Drop-free routing
    has a row for each choice, padding left out, which is taken as no padding here; where one decision holds for a segment, all
    tokens meet one matrix."""
    tokens = samples * length
    if config.has_constant_gate:
        return tokens
    group = length * examples_per_group(samples, length, config.group_tokens, config.group_examples)
    return config.planned_router.rows(tokens // group, group)


def linear_widths(config: ImpConfig, name: str) -> tuple[int, int]:
    """Inputs and outputs of a block's linear layer, one of `configuration_imp.LINEARS`."""
    width, hidden = config.hidden_size, config.intermediate_size
    return {"qkv": (width, 3 * width), "out": (width, width), "up": (width, hidden), "down": (hidden, width)}[name]


def linear_prefix(name: str) -> tuple[str, ...]:
    """What the names of its weights begin with in a block."""
    return (f"{'attention' if name in LINEAR_PAIRS[0] else 'feed_forward'}.{name}.",)


def mixture(config: ImpConfig, samples: int, length: int, size: int, ep_size: int = 1) -> list[Kernel]:
    """A MoE feed-forward: a rank computes as many rows as it sends, with the weights of its own experts."""
    tokens, width, hidden = samples * length, config.hidden_size, config.intermediate_size
    rows, matrices = expert_rows(config, samples, length), 3 if config.expert_activation == "geglu" else 2
    moved = rows * (width + hidden) + config.num_experts // ep_size * width * hidden
    sums = 6 * tokens * width  # the residual's
    exchanged = 8 * rows * width if ep_size > 1 else 0  # rows put in the order of ranks, and of experts again
    return [
        passes("norm", 5 * tokens * width * size, 1, in_block=True, of=("feed_forward_norm.",)),
        replace(
            _routing(config, samples, length, width, (10 * rows + 4 * tokens) * width * size), of=("feed_forward.router.",)
        ),
        Kernel(
            "experts", width, 6 * matrices * rows * width * hidden, 3 * matrices * moved * size, 1, True,
            of=EXPERTS,
        ),
        passes("gelu", (5 if matrices == 2 else 10) * rows * hidden * size, matrices - 1, in_block=True),
        passes("copy", (sums + exchanged) * size, 6 if ep_size > 1 else 2, in_block=True),
    ]


def conditional_linear(config: ImpConfig, name: str, samples: int, length: int, size: int, ep_size: int = 1) -> list[Kernel]:
    """A linear layer that has experts, instead of the product of a plain one."""
    kind = _merged_linear if config.has_constant_gate else _routed_linear
    return [replace(kernel, of=linear_prefix(name)) for kernel in kind(config, name, samples, length, size, ep_size)]


def _routed_linear(config: ImpConfig, name: str, samples: int, length: int, size: int, ep_size: int) -> list[Kernel]:
    """The rows of the tokens' experts, gathered, and their answers, summed."""
    tokens, rows = samples * length, expert_rows(config, samples, length)
    in_features, out_features = linear_widths(config, name)
    gathered = (5 * rows + 2 * tokens) * (in_features + out_features) * size
    moved = rows * (in_features + out_features) + config.num_experts // ep_size * in_features * out_features
    decided = _routing(config, samples, length, in_features, gathered) if config.decides(name) else _passes_of_rows(gathered)
    experts = Kernel("experts", min(in_features, out_features), 6 * rows * in_features * out_features, 3 * moved * size, 1, True)
    exchanged = [passes("copy", 4 * rows * (in_features + out_features) * size, 4, in_block=True)] if ep_size > 1 else []
    return [decided, experts, *exchanged]


def _merged_linear(config: ImpConfig, name: str, samples: int, length: int, size: int, ep_size: int) -> list[Kernel]:
    """The sum of the experts' matrices, and the one product with it."""
    multiplied = product(samples * length, *linear_widths(config, name), size, in_block=True)
    return [*merge_experts(config, name, size, ep_size), multiplied]


def merge_experts(config: ImpConfig, name: str, size: int, ep_size: int) -> list[Kernel]:
    """What one condition costs in a conditional linear layer of a constant gate: the decision, and the sum of the experts'
    matrices."""
    in_features, out_features = linear_widths(config, name)
    chosen, held = config.experts_per_token, config.num_experts // ep_size
    if ep_size == 1:
        # forward: K matrices gathered and summed; backward: the gradients of K matrices and K weights, put among those of all E
        summed, moved = chosen, 8 * chosen + held + 3
    else:
        # a rank sums all that it holds
        summed, moved = held, 3 * held + 4
    sums = Kernel("copy", 0, 6 * summed * in_features * out_features, moved * in_features * out_features * size, 4, True)
    return [*([_gate(config)] if config.decides(name) else []), sums]


def _gate(config: ImpConfig) -> Kernel:
    """The decision of a constant gate: products of a single row."""
    decided = product(1, config.hidden_size, config.num_experts, FLOAT32)
    read = product(1, len(attribute_names(config.modalities)), config.hidden_size, FLOAT32, input_gradient=False)
    both = [decided, read] if config.gate == "attribute" else [decided]
    return Kernel("routing", 0, sum(kernel.flops for kernel in both), sum(kernel.bytes for kernel in both), len(both), True)


def _routing(config: ImpConfig, samples: int, length: int, width: int, gathered: float) -> Kernel:
    """The decisions of a router that sees tokens of `width`; `gathered` bytes are those of gathering and summing rows."""
    tokens = samples * length
    decided = product(tokens, width, config.num_experts, FLOAT32)
    flops, moved = decided.flops, decided.bytes
    if config.gate == "context":
        # scores against a query and the weighted sum, each a product forward and two backward; then the pooled tokens' logits
        pooled = product(samples, width, config.num_experts, FLOAT32)
        flops += 2 * 6 * tokens * width + pooled.flops
        moved += 8 * tokens * width * FLOAT32 + pooled.bytes
    return Kernel("routing", 0, flops, moved + gathered, 1, True)


def _passes_of_rows(gathered: float) -> Kernel:
    return passes("routing", gathered, 1, in_block=True)
