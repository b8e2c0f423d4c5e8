"""Make the corpus talk: the media of the corpus digits, spoken questions, and for each task the conversations about them.

In its folder: `{task}.{split}.jsonl`; images, films (videos) and speech, of the same seed the files of the corpus digits;
questions and several with what is spoken besides; talk.json with the tasks' metrics and chances. Rows name files below the
folder of their own file, which is why all tasks lie side by side in one.
"""

import json
from pathlib import Path

import numpy as np

from imp_ds.data.digits.corpus import SPLITS, finish, scaled, write_media
from imp_ds.data.digits.espeak import Speaker
from imp_ds.data.digits.staging import MadeCorpus, Progress
from imp_ds.data.talk import spoken, tasks, texts
from imp_ds.data.talk.conversations import Media, chance
from imp_ds.data.talk.questions import QUESTIONS

FACTS = "talk.json"
QUESTIONS_SPOKEN = {"train": 3000, "validation": 500, "test": 500}
SEVERAL_SPOKEN = {"train": 2400, "validation": 480, "test": 480}
TALK = MadeCorpus("talk")
# Streams of random numbers: [seed, stage, split]; the corpus digits has stages 1 to 4.
_QUESTIONS, _SEVERAL, _CONVERSATIONS, _TEXTS = 5, 6, 7, 8
_WORDINGS = sum(len(question.wordings) for question in QUESTIONS.values())
_ONE_BY_ONE = {"several_digits": tasks.several_digits, "transcript": tasks.transcript}  # a row for each recording
_TEXT_ONLY = {"arithmetic": texts.arithmetic, "description": texts.descriptions}
NAMES = (*tasks.TASKS, *_ONE_BY_ONE, *_TEXT_ONLY)


def build(out: str | Path, seed: int = 0, *, scale: float = 1.0, progress: Progress | None = None) -> bool:
    """Make the corpus in the folder `out`; True when it was made, False when it was found there, complete: see
    `MadeCorpus.build`."""
    return TALK.build(out, seed, scale, _write, progress)


def splits_of(task: str) -> dict[str, str]:
    """`Source.splits` of a task, whose path is the corpus' folder."""
    return {split: f"{task}.{split}.jsonl" for split in SPLITS}


def _write(root: Path, seed: int, scale: float, progress: Progress):
    media_rows = write_media(root, seed, scale, progress)
    _write_spoken(root, media_rows, seed, scale, progress)
    found: dict[str, dict[str, list[dict]]] = {name: {} for name in NAMES}
    for index, split in enumerate(SPLITS):
        media = Media(split, media_rows[split], np.random.default_rng([seed, _CONVERSATIONS, index]))
        for name, task in tasks.TASKS.items():
            found[name][split] = tasks.rows(task, media, scale)
        found["several_digits"][split] = [tasks.several_digits(media, *named) for named in media.several]
        found["transcript"][split] = [tasks.transcript(media, *named) for named in media.questions]
    for index, (name, rows) in enumerate(_TEXT_ONLY.items()):
        found[name] = texts.split_rows(rows(), np.random.default_rng([seed, _TEXTS, index]))
    for number, (name, by_split) in enumerate(found.items(), 1):
        for split, rows in by_split.items():
            keyed = ({"key": f"{name}-{split}-{place:05d}"} | row for place, row in enumerate(rows))
            (root / f"{name}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in keyed))
        progress("conversations", number, len(found))
    (root / FACTS).write_text(json.dumps({name: _facts(name, by_split) for name, by_split in found.items()}, indent=1) + "\n")


def _write_spoken(root: Path, rows: dict[str, dict[str, list[dict]]], seed: int, scale: float, progress: Progress):
    """Write the folders questions and several, and put their rows beside those of the other media."""
    with Speaker() as speaker:
        for index, split in enumerate(SPLITS):
            for folder, stage, write, count in (
                ("questions", _QUESTIONS, spoken.write_questions, scaled(QUESTIONS_SPOKEN[split], scale, _WORDINGS)),
                ("several", _SEVERAL, spoken.write_several, scaled(SEVERAL_SPOKEN[split], scale, len(spoken.COUNTS))),
            ):
                into = root / folder / split
                into.mkdir(parents=True)
                made = write(into, split, count, speaker, np.random.default_rng([seed, stage, index]))
                rows[split][folder] = finish(into, made, count, progress)


def _facts(name: str, by_split: dict[str, list[dict]]) -> dict:
    """What talk.json says of a task. Chance is that of a guess without the media, on the test split: in all, and by kind."""
    columns = tasks.TASKS[name].columns if name in tasks.TASKS else ("audios",) if name in _ONE_BY_ONE else ()
    guessed = chance(by_split["test"]) if columns else {"": None}
    return {
        "media": list(columns), "metric": "wer" if name == "transcript" else "exact_match",
        "rows": {split: len(rows) for split, rows in by_split.items()}, "chance": guessed.pop(""), "chance_by_kind": guessed,
    }  # fmt: skip
