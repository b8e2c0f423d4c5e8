"""What the corpus says about its samples: class names, caption templates, and the prompts of zero-shot classification.

A template has the slots {digit} and {direction}, or {} for the whole class name. The templates with {} are also the
zero-shot prompts, so that prompts are phrased as the captions of training are.
"""

import numpy as np

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = ("left", "right", "up", "down")

# No article stands right before a slot: "a eight" would be wrong.
PROMPTS = {
    "images": (
        "a picture of the digit {}.",
        "a small grey picture of the number {}.",
        "the handwritten digit {}.",
        "this image shows the number {}.",
        "the number {} written by hand.",
        "white {} on black.",
    ),
    "films": (
        "a film of the digit {}.",
        "a short film shows the number {}.",
        "the handwritten digit {}.",
        "in this film we see {}.",
        "a video of the number {}.",
        "white {} across the frame.",
    ),
    "speech": (
        "a voice says {}.",
        "the spoken digit {}.",
        "someone says the word {}.",
        "a recording of the number {}.",
        "we hear a person say {}.",
        "the sound of the word {}.",
    ),
}
EXTRA = {
    "images": (
        "somebody drew the number {digit} with a pen.",
        "here is a scan of the digit {digit}.",
        "it looks like {digit}.",
        "the digit {digit} in white ink.",
        "a blurry little {digit}, drawn by somebody.",
        "a single character, the digit {digit}.",
    ),
    "films": (
        "the digit {digit} slides {direction}.",
        "the number {digit} goes {direction} while a voice speaks.",
        "watch the number {digit} travel {direction}.",
        "it is the digit {digit} and it drifts {direction}.",
        "{direction} it goes, the handwritten {digit}.",
        "somebody moves the digit {digit} {direction}.",
    ),
    "speech": (
        "listen, the speaker reads {digit} aloud.",
        "{digit}, spoken clearly.",
        "an artificial voice pronounces {digit}.",
        "this sound is the digit {digit}.",
        "somebody speaks the number {digit}.",
        "they said {digit}.",
    ),
}
_CAPTIONS_PER_ROW = 5


def class_names(folder: str) -> list[str]:
    """Class names of "images", "films" or "speech" in label order; a film's label is digit * 4 + direction."""
    if folder == "films":
        return [f"{word} moving {direction}" for word in WORDS for direction in DIRECTIONS]
    return list(WORDS)


def classes() -> dict[str, dict[str, list[str]]]:
    """What classes.json holds: folder -> {"names": in label order, "templates": zero-shot prompts with one slot {}}."""
    return {folder: {"names": class_names(folder), "templates": list(PROMPTS[folder])} for folder in PROMPTS}


def captions(folder: str, label: int, rng: np.random.Generator) -> list[str]:
    """Five captions of a sample from five different templates."""
    name = class_names(folder)[label]
    digit, direction = (label // 4, DIRECTIONS[label % 4]) if folder == "films" else (label, "")
    templates = PROMPTS[folder] + EXTRA[folder]
    chosen = rng.choice(len(templates), _CAPTIONS_PER_ROW, replace=False)
    return [templates[i].format(name, digit=WORDS[digit], direction=direction) for i in chosen]
