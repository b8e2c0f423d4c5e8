"""LoRA in experts: a forward and a backward of one layer, ours beside PEFT's `target_parameters` on transformers' layer.

    python benchmarks/lora_experts.py [--out benchmarks/results/lora_experts.md]

Both have the same frozen weights and the same LoRA, by way of the adapter that we write and PEFT loads: answers and the input's
gradient agree, or the benchmark ends with an error. CPU, one thread, float32. A minute and 3 GB of memory.
"""

import argparse
import datetime
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from imp_ds.families.uni_moe.adapters.files import save_adapter  # noqa: E402
from imp_ds.models.uni_moe import UniMoeConfig, UniMoeForConditionalGeneration  # noqa: E402
from imp_ds.models.uni_moe.lora import CHANGES  # noqa: E402
from imp_ds.models.uni_moe.upcycling import from_base  # noqa: E402

EXPERTS, PER_TOKEN, WIDTH, FEED_FORWARD, RANK = 32, 2, 512, 1024, 8
TOKENS, ROUNDS = (64, 512, 2048), 7
CONFIG = dict(
    vocab_size=64, hidden_size=WIDTH, intermediate_size=FEED_FORWARD, moe_intermediate_size=FEED_FORWARD, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=4, num_experts=EXPERTS, num_experts_per_tok=PER_TOKEN, norm_topk_prob=True,
)  # fmt: skip
LORA = dict(r=RANK, lora_alpha=2 * RANK, target_parameters=["experts.gate_up_proj", "experts.down_proj"])
LAYERS = ("imp_ds", "PEFT", "imp_ds without LoRA", "transformers without LoRA")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = layers()
    rows = [measured(steps, tokens) for tokens in TOKENS]
    del steps
    memory = {name: grown(name) for name in LAYERS}
    text = table(rows, memory)
    print(text)
    if options.out:
        options.out.write_text(text)


def layers() -> dict[str, Callable]:
    """Of each layer a function of tokens [T, D] to answers [T, D]. All weights are frozen but those of LoRA."""
    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # PEFT does not find patterns of parameters among modules, and uses them
    stock = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **CONFIG, initializer_range=0.05))
    ours, plain = (of_stock(stock, lora) for lora in (LORA, None))
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_(CHANGES in name)
        if CHANGES in name and name.endswith("B"):
            torch.nn.init.normal_(parameter, std=0.05)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(ours.language_model, Path(folder), "base")
        theirs = AutoModelForCausalLM.from_config(stock.config)
        theirs.load_state_dict(stock.state_dict())
        theirs = PeftModel.from_pretrained(theirs, folder, is_trainable=True).get_base_model()
    plain.requires_grad_(False)
    stock.requires_grad_(False)
    found = [ours.language_model, theirs, plain.language_model, stock]
    return {name: model.get_decoder().layers[0].mlp for name, model in zip(LAYERS, found)}


def of_stock(stock, lora: dict | None) -> UniMoeForConditionalGeneration:
    """Ours with the weights of transformers' model."""
    model = UniMoeForConditionalGeneration(
        UniMoeConfig(text_config=stock.config, num_experts=EXPERTS, num_experts_per_tok=PER_TOKEN, lora=lora)
    )
    model.language_model.load_state_dict(from_base(stock.state_dict(), model.language_model, FEED_FORWARD), strict=False)
    return model


def step(layer: Callable, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers, and the gradient of the tokens; the gradients of LoRA are computed and let go."""
    drawn = torch.Generator().manual_seed(tokens)
    x_BLD = torch.randn(1, tokens, WIDTH, generator=drawn).requires_grad_()
    weight_BLD = torch.randn(1, tokens, WIDTH, generator=drawn)
    y_BLD = layer(x_BLD)
    y_BLD = y_BLD[0] if isinstance(y_BLD, tuple) else y_BLD
    (y_BLD * weight_BLD).sum().backward()
    for parameter in layer.parameters():
        parameter.grad = None
    return y_BLD.detach(), x_BLD.grad


def measured(steps: dict[str, Callable], tokens: int) -> tuple:
    """(tokens, median seconds of the processor's time by layer, median over the rounds of PEFT's in units of ours)."""
    answers = {name: step(layer, tokens) for name, layer in steps.items()}  # not counted: the first call
    for pair in (LAYERS[:2], LAYERS[2:]):
        for a, b in zip(answers[pair[0]], answers[pair[1]]):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    seconds = {name: [] for name in steps}
    for _ in range(ROUNDS):  # by turns, so that whatever else the machine does slows all
        for name, layer in steps.items():
            start = time.process_time()
            step(layer, tokens)
            seconds[name].append(time.process_time() - start)
    ratio = statistics.median(theirs / ours for theirs, ours in zip(seconds["PEFT"], seconds["imp_ds"]))
    return tokens, {name: statistics.median(values) for name, values in seconds.items()}, ratio


def grown(name: str) -> float:
    """By how many MiB a process grows at most in steps of one layer, above what the layer itself takes."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_grow, args=(name, sender))
    process.start()
    found = receiver.recv()
    process.join()
    return found


def _grow(name: str, sender) -> None:
    torch.set_num_threads(1)
    layer = layers()[name]  # the others are let go
    before = _kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for _ in range(3):
        step(layer, 512)
    sender.send((_kib("VmHWM") - before) / 1024)


def _kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def table(rows: list[tuple], memory: dict[str, float]) -> str:
    head = f"""# LoRA in experts, beside PEFT's `target_parameters`

{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, one process of one thread, float32; Python
{platform.python_version()}, torch {torch.__version__}, transformers {version("transformers")}, peft {version("peft")}.
`python benchmarks/lora_experts.py` makes this table.

One layer of {EXPERTS} experts, {PER_TOKEN} for each token, width {WIDTH}, feed-forward {FEED_FORWARD}; LoRA of r = {RANK}
on gate, up and down, everything else frozen, the router too. Forward and backward, to the tokens as well: milliseconds of the
processor's time, medians of {ROUNDS} rounds by turns. Both compute the same: PEFT has loaded the adapter that ours wrote.
Ratio: PEFT's time in units of ours, the median over the rounds.

| tokens | imp_ds | PEFT | ratio | without LoRA: imp_ds | transformers |
| ---: | ---: | ---: | ---: | ---: | ---: |
"""
    body = "".join(
        f"| {tokens} | {ms['imp_ds']:.1f} | {ms['PEFT']:.1f} | {ratio:.1f} | {ms[LAYERS[2]]:.1f} | {ms[LAYERS[3]]:.1f} |\n"
        for tokens, seconds, ratio in rows for ms in [{name: 1e3 * value for name, value in seconds.items()}]
    )  # fmt: skip
    stacks = 4 * EXPERTS * 3 * WIDTH * FEED_FORWARD / 2**20
    return head + body + f"""
Memory that three steps of 512 tokens take at most, above the layer itself, whose experts are {stacks:.0f} MiB:
{memory["imp_ds"]:.0f} MiB here, {memory["PEFT"]:.0f} MiB with PEFT, which sums the weights of all experts in each forward, and
has a gradient of each sum in the backward; without LoRA {memory[LAYERS[2]]:.0f} and {memory[LAYERS[3]]:.0f} MiB.
"""


if __name__ == "__main__":
    main()
