"""How the measures of an evaluation are written: each value with its unit, and all of them in one line for the console.

Their flat names are kind/name/.../measure, for example retrieval/image/image_to_text/R@1.
"""

KINDS = ("tuned", "zero_shot", "answers", "retrieval", "heads", "captioning", "masked_language")
_NUMBERS = ("perplexity", "cider", "loss")  # what is no share
# of each kind the measures that the console shows, and what they are called there
_IN_ONE_LINE = {
    "tuned": ("tuned", {"top1": "", "loss": "loss "}),
    "zero_shot": ("zero-shot", {"top1": ""}),
    "answers": ("answers", {"exact_match": ""}),
    "retrieval": ("retrieval R@1", {"R@1": ""}),
    "heads": ("heads", {"top1": "", "loss": "loss "}),
    "captioning": ("captions", {"bleu4": "BLEU-4 ", "cider": "CIDEr "}),
    "masked_language": ("hidden words", {"accuracy": "", "perplexity": "perplexity "}),
}


def written(name: str, value: float) -> str:
    """A value as people read it: 98.3 %, 0.412 of a loss, 3 samples."""
    if name.startswith("left_out/"):
        return f"{value:.0f}"
    measure = name.rpartition("/")[2]
    if measure in _NUMBERS:
        return f"{value:.3f}" if measure == "loss" else f"{value:.2f}"
    return f"{100 * value:.1f} %"


def in_one_line(results: dict[str, float]) -> str:
    """What an evaluation found, the main measures of each kind; "" where there are none of them.

    Of retrieval the directions stand for the name: "retrieval R@1 image_to_text 12.5 %, text_to_image 10.0 %".
    """
    parts = []
    for kind, (heading, chosen) in _IN_ONE_LINE.items():
        found: dict[str, list[str]] = {}
        for name, value in results.items():
            path = name.split("/")
            if path[0] == kind and path[-1] in chosen:
                found.setdefault(path[-2], []).append(chosen[path[-1]] + written(name, value))
        if found:
            parts.append(f"{heading} " + ", ".join(f"{name} {' '.join(values)}" for name, values in found.items()))
    return "; ".join(parts)
