"""The tasks of the corpus that have media: how their conversations are made of a split's media.

Of each task every (question, digit) is there equally often, so that a guess without the media is right as often as chance.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from imp_ds.data.digits.captions import DIRECTIONS, WORDS
from imp_ds.data.talk.conversations import Media, conversation, digits_in_words
from imp_ds.data.talk.questions import (
    AGREE,
    IMAGE_QUESTIONS,
    NUMBERS,
    QUESTIONS,
    SEVERAL,
    SUM,
    TRANSCRIBE,
    VIDEO_QUESTIONS,
    video_facts,
    yes_or_no,
)

DIGITS, LABELS = range(len(WORDS)), range(len(WORDS) * len(DIRECTIONS))
_PAIRS = list(product(DIGITS, DIGITS))
_SPEECH_QUESTIONS = ("which", "even", "larger", "next", "transcribe")


class TalkTask(NamedTuple):
    """cells: what rows are made for, each equally often; make: (media, cell) -> a row; counts: rows of each split, in all;
    columns: which media the rows have."""

    make: Callable[[Media, object], dict]
    cells: list
    counts: dict[str, int]
    columns: tuple[str, ...]


def rows(task: TalkTask, media: Media, scale: float) -> list[dict]:
    """The rows of a split, in random order, without their keys."""
    rounds = max(1, round(task.counts[media.split] * scale / len(task.cells)))
    return [task.make(media, task.cells[place % len(task.cells)]) for place in media.rng.permutation(rounds * len(task.cells))]


def image_question(media: Media, cell) -> dict:
    kind, digit = cell
    text = media.wording(QUESTIONS[kind].wordings)
    return conversation(kind, (f"<image>\n{text}", QUESTIONS[kind].answer(digit, "")), images=[media.image(digit)])


def video_question(media: Media, cell) -> dict:
    kind, label = cell
    text = media.wording(QUESTIONS[kind].wordings)
    return conversation(kind, (f"<video>\n{text}", QUESTIONS[kind].answer(*video_facts(label))), videos=[media.video(label)])


def speech_question(media: Media, cell) -> dict:
    kind, digit = cell
    if kind == "transcribe":
        text, answer = media.wording(TRANSCRIBE), WORDS[digit]
    else:
        text, answer = media.wording(QUESTIONS[kind].spoken), QUESTIONS[kind].answer(digit, "")
    return conversation(kind, (f"<audio>\n{text}", answer), audios=[media.speech(digit)])


def spoken_question_image(media: Media, cell) -> dict:
    kind, digit = cell
    answer = QUESTIONS[kind].answer(digit, "")
    return conversation(kind, ("<image><audio>", answer), images=[media.image(digit)], audios=[media.question(kind)])


def spoken_question_video(media: Media, cell) -> dict:
    kind, label = cell
    answer = QUESTIONS[kind].answer(*video_facts(label))
    return conversation(kind, ("<video><audio>", answer), videos=[media.video(label)], audios=[media.question(kind)])


def digit_sum(media: Media, cell) -> dict:
    digit, spoken = cell
    turn = f"<image><audio>\n{media.wording(SUM)}", NUMBERS[digit + spoken]
    return conversation("sum", turn, images=[media.image(digit)], audios=[media.speech(spoken)])


def digit_agreement(media: Media, cell) -> dict:
    same, digit = cell
    spoken = digit if same else (digit + int(media.rng.integers(1, len(WORDS)))) % len(WORDS)
    turn = f"<image><audio>\n{media.wording(AGREE)}", yes_or_no(same)
    return conversation("agree", turn, images=[media.image(digit)], audios=[media.speech(spoken)])


def follow_up(media: Media, cell) -> dict:
    kind, (first, second) = cell
    return _FOLLOW_UPS[kind](media, first, second)


def _image_turn(media: Media, kind: str, digit: int, tag: str = "") -> tuple[str, str]:
    return tag + media.wording(QUESTIONS[kind].wordings), QUESTIONS[kind].answer(digit, "")


def _narrowed(media: Media, digit: int, _) -> dict:
    turns = [_image_turn(media, kind, digit) for kind in ("larger", "which")]
    turns = [_image_turn(media, "even", digit, "<image>\n"), *turns]
    return conversation("even, larger, which", *turns, images=[media.image(digit)])


def _even_then_which(media: Media, digit: int, _) -> dict:
    turns = _image_turn(media, "even", digit, "<image>\n"), _image_turn(media, "which", digit)
    return conversation("even, which", *turns, images=[media.image(digit)])


def _image_then(kind: str, texts: tuple[str, ...], answer: Callable[[int, int], str]) -> Callable[[Media, int, int], dict]:
    """A written digit is named; then a spoken one is asked about."""

    def make(media: Media, digit: int, spoken: int) -> dict:
        turns = _image_turn(media, "which", digit, "<image>\n"), (f"<audio>\n{media.wording(texts)}", answer(digit, spoken))
        return conversation(f"which, {kind}", *turns, images=[media.image(digit)], audios=[media.speech(spoken)])

    return make


def _moves_then_which(media: Media, digit: int, other: int) -> dict:
    label = digit * len(DIRECTIONS) + other % len(DIRECTIONS)
    texts = [media.wording(QUESTIONS[kind].wordings) for kind in ("direction", "which")]
    turns = (f"<video>\n{texts[0]}", video_facts(label)[1]), (texts[1], WORDS[digit])
    return conversation("direction, which", *turns, videos=[media.video(label)])


_FOLLOW_UPS = {
    "even, larger, which": _narrowed,
    "even, which": _even_then_which,
    "which, spoken": _image_then("spoken", QUESTIONS["which"].spoken, lambda digit, spoken: WORDS[spoken]),
    "which, sum": _image_then("sum", SUM, lambda digit, spoken: NUMBERS[digit + spoken]),
    "which, larger": _image_then("larger", QUESTIONS["larger"].spoken, lambda digit, spoken: yes_or_no(spoken > 4)),
    "direction, which": _moves_then_which,
}


def several_digits(media: Media, name: str, row: dict) -> dict:
    """Of one recording."""
    turn = f"<audio>\n{media.wording(SEVERAL)}", digits_in_words(row["digits"])
    return conversation("several", turn, audios=[name])


def transcript(media: Media, name: str, row: dict) -> dict:
    """Of one spoken question."""
    return conversation("transcript", (f"<audio>\n{media.wording(TRANSCRIBE)}", row["text"]), audios=[name])


def _counts(train: int, held_out: int) -> dict[str, int]:
    return {"train": train, "validation": held_out, "test": held_out}


TASKS = {
    "image_question": TalkTask(image_question, list(product(IMAGE_QUESTIONS, DIGITS)), _counts(4000, 520), ("images",)),
    "video_question": TalkTask(video_question, list(product(VIDEO_QUESTIONS, LABELS)), _counts(4000, 480), ("videos",)),
    "speech_question": TalkTask(speech_question, list(product(_SPEECH_QUESTIONS, DIGITS)), _counts(4000, 500), ("audios",)),
    "spoken_question_image": TalkTask(
        spoken_question_image, list(product(IMAGE_QUESTIONS, DIGITS)), _counts(4000, 520), ("images", "audios")
    ),
    "spoken_question_video": TalkTask(
        spoken_question_video, list(product(VIDEO_QUESTIONS, LABELS)), _counts(4000, 480), ("videos", "audios")
    ),
    "digit_sum": TalkTask(digit_sum, _PAIRS, _counts(4000, 500), ("images", "audios")),
    "digit_agreement": TalkTask(digit_agreement, list(product((True, False), DIGITS)), _counts(4000, 500), ("images", "audios")),
    "follow_up": TalkTask(follow_up, list(product(_FOLLOW_UPS, _PAIRS)), _counts(4200, 600), ("images", "videos", "audios")),
}
