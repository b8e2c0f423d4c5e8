"""How fast answers are generated, with a cache of keys and values, beside transformers' own model with the same weights.

    python benchmarks/uni_moe_decode.py [--new 48] [--out benchmarks/results/uni_moe_decode.md]

A Llama and a Mixtral of 4 experts of the same sizes, float32, one thread, greedy: ours as the language model of
UniMoeForConditionalGeneration. Both generate the same ids, or the benchmark ends with an error. A minute and 2 GB of memory.
"""

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from imp_ds.models.uni_moe import UniMoeConfig, UniMoeForConditionalGeneration  # noqa: E402
from imp_ds.models.uni_moe.upcycling import from_base  # noqa: E402

PROMPT, ROUNDS, BATCHES = 64, 5, (1, 8)
SIZES = dict(
    vocab_size=8000, hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=6,
    max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=None, initializer_range=0.1,
)  # fmt: skip
BASES = {"dense": LlamaConfig(**SIZES), "4 experts": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in BASES for row in compared(name, options.new)]
    text = table(rows, options.new)
    print(text)
    if options.out:
        options.out.write_text(text)


def compared(name: str, new: int) -> list[tuple]:
    """(base, batch, tokens/s of ours, of transformers, median of their ratio in a round) of each batch."""
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(BASES[name]).eval()
    found = []
    for batch in BATCHES:
        models = {"imp_ds": ours_of(theirs), "transformers": theirs}
        ids = torch.randint(3, SIZES["vocab_size"], (batch, PROMPT), generator=torch.Generator().manual_seed(batch))
        answers = {which: generated(model, ids, new)[0] for which, model in models.items()}  # not counted: the first call
        if not torch.equal(*answers.values()):
            raise SystemExit(f"{name}, batch {batch}: the answers differ")
        seconds = {which: [] for which in models}
        for _ in range(ROUNDS):  # by turns, so that whatever else the machine does slows both
            for which, model in models.items():
                seconds[which].append(generated(model, ids, new)[1])
        ratio = statistics.median(a / b for a, b in zip(seconds["imp_ds"], seconds["transformers"]))
        speeds = [batch * new / statistics.median(seconds[which]) for which in models]
        found.append((name, batch, *speeds, ratio))
    return found


def ours_of(theirs: PreTrainedModel) -> UniMoeForConditionalGeneration:
    experts = getattr(theirs.config, "num_local_experts", 0)
    model = UniMoeForConditionalGeneration(UniMoeConfig(theirs.config, num_experts=experts)).eval()
    model.generation_config.eos_token_id = None
    state = theirs.state_dict()
    weights = from_base(state, model.language_model, SIZES["intermediate_size"]) if experts else state
    model.language_model.load_state_dict(weights)
    return model


@torch.no_grad()
def generated(model: PreTrainedModel, ids: torch.Tensor, new: int) -> tuple[torch.Tensor, float]:
    """The ids, and the processor's seconds."""
    begin = time.process_time()
    answer = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, min_new_tokens=new
    )
    return answer, time.process_time() - begin


def table(rows: list[tuple], new: int) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    lines = [
        "# Generating answers with a cache of keys and values",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, one process of one thread, float32; Python",
        f"{platform.python_version()}, {versions}. `python benchmarks/uni_moe_decode.py` makes this table.",
        "",
        f"Greedy, prompts of {PROMPT} tokens, {new} new ones; a Llama of width {SIZES['hidden_size']} with",
        f"{SIZES['num_hidden_layers']} layers, and a Mixtral of 4 experts, 2 of a token, of the same sizes. New tokens a",
        f"second of the processor's time, medians of {ROUNDS} rounds by turns; the ids are the same. Time: ours in units of",
        "transformers', the median over the rounds.",
        "",
        "| language model | batch | imp_ds | transformers | time |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [f"| {name} | {batch} | {ours:.0f} | {theirs:.0f} | {ratio:.2f} |" for name, batch, ours, theirs, ratio in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
