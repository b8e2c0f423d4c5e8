"""Rows of conversations, and the media that they name.

A row: key, kind (what is asked), messages (contents are texts with the tags <image>, <video> and <audio>), and the columns
images, videos and audios with the names of the files, where there are any.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from imp_ds.data.digits.captions import WORDS
from imp_ds.data.talk.spoken import LONGEST_S

TAGS = {"images": "<image>", "videos": "<video>", "audios": "<audio>"}
_ASKS = ("which", "what", "is", "where", "do", "are", "how")


class Media:
    """The files of a split that conversations draw from, all at random and with replacement.

    Args:
        rows: of each folder, as its metadata has them: images, speech, films (videos), questions, several.
    """

    def __init__(self, split: str, rows: dict[str, list[dict]], rng: np.random.Generator):
        self.split, self.rng = split, rng
        named = {folder: [(f"{folder}/{split}/{row['file_name']}", row) for row in rows[folder]] for folder in rows}
        self._images, self._videos, self._speech = _by("label", named["images"]), _by("label", named["films"]), defaultdict(list)
        for name, row in named["speech"]:
            if row["seconds"] <= LONGEST_S:
                self._speech[row["label"]].append(name)
        self._questions = _by("kind", named["questions"])
        self.questions, self.several = named["questions"], named["several"]

    def image(self, digit: int) -> str:
        """A picture of the digit."""
        return self.pick(self._images[digit])

    def video(self, label: int) -> str:
        """A video of that label: digit and direction."""
        return self.pick(self._videos[label])

    def speech(self, digit: int) -> str:
        """A voice that says the digit."""
        return self.pick(self._speech[digit])

    def question(self, kind: str) -> str:
        """A voice that asks this kind of question, in one of its wordings."""
        return self.pick(self._questions[kind])

    def wording(self, wordings: Sequence[str]) -> str:
        """One of the texts, as it is written."""
        return written(self.pick(wordings))

    def pick(self, things: Sequence):
        """One of them."""
        return things[self.rng.integers(len(things))]


def _by(column: str, named: list[tuple[str, dict]]) -> dict[object, list[str]]:
    found = defaultdict(list)
    for name, row in named:
        found[row[column]].append(name)
    return found


def written(text: str) -> str:
    """A question or a request with its mark."""
    return text + ("?" if text.split()[0] in _ASKS else ".")


def conversation(kind: str, *turns: tuple[str, str], **media: list[str]) -> dict:
    """A row without its key: (what the user writes, what is answered) of each turn."""
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"kind": kind, "messages": messages} | media


def chance(rows: list[dict]) -> dict[str, float]:
    """{kind: share of right last answers} of a guess without the media, which gives to each text the answer that is right
    most often; "" holds the mean. Wordings of one kind are one text, since they have the same answers."""
    answers = defaultdict(Counter)
    for row in rows:
        given, contents = "", [message["content"] for message in row["messages"]]
        for question, answer in zip(contents[::2], [*contents[1:-1:2], ""]):
            given += f"{bool(_without_tags(question))} {answer} "
        answers[row["kind"] if _without_tags(contents[-2]) else "", given][row["kind"], contents[-1]] += 1
    best, totals = Counter(), Counter()
    for counted in answers.values():
        by_answer = Counter()
        for (kind, answer), count in counted.items():
            by_answer[answer] += count
            totals[kind] += count
        likeliest = max(by_answer, key=by_answer.get)
        for (kind, answer), count in counted.items():
            best[kind] += count * (answer == likeliest)
    return {"": sum(best.values()) / len(rows)} | {kind: best[kind] / totals[kind] for kind in sorted(totals)}


def _without_tags(content: str) -> str:
    for tag in TAGS.values():
        content = content.replace(tag, "")
    return content.strip()


def digits_in_words(digits: list[int]) -> str:
    """[3, 7, 1] as "three seven one"."""
    return " ".join(WORDS[digit] for digit in digits)
