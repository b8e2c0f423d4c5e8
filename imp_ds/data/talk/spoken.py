"""What the corpus speaks besides single digits: questions, and several digits one after the other; as FLAC.

Voices are those of the spoken digits (`imp_ds.data.digits.speech`), and the same stand in training alone.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from imp_ds.data.digits import speech
from imp_ds.data.digits.captions import WORDS
from imp_ds.data.digits.espeak import Speaker
from imp_ds.data.talk.questions import QUESTIONS

LONGEST_S = 1.28  # of a question: the audio view of the recipe `digits`
COUNTS = (2, 3, 4)  # digits one after the other
_RATES, _FASTEST, _FASTER = (150, 221), 450, 1.15  # words per minute
_PITCHES, _RANGES = (25, 76), (20, 81)


class Voice:
    """A voice that is drawn: `say` gives int16 [samples] at 16 kHz with a little silence around."""

    def __init__(self, split: str, speaker: Speaker, low_pass: np.ndarray, rng: np.random.Generator):
        self.name = f"{rng.choice(speech.ACCENTS)}+{rng.choice(speech.VARIANTS[split])}"
        self.rate, self.pitch, self.range = (int(rng.integers(*bounds)) for bounds in (_RATES, _PITCHES, _RANGES))
        self._speaker, self._low_pass, self._rng = speaker, low_pass, rng

    def say(self, text: str, longest_s: float = float("inf")) -> np.ndarray:
        """Speak, and again faster until it is short enough."""
        while True:
            spoken = self._speaker.say(text, self.name, self.rate, self.pitch, self.range)
            samples = speech.finish(spoken, self._speaker.rate_hz, self._low_pass, self._rng)
            if len(samples) <= longest_s * speech.RATE_HZ or self.rate >= _FASTEST:
                return samples
            self.rate = min(_FASTEST, round(self.rate * _FASTER))


def write_questions(folder: Path, split: str, count: int, speaker: Speaker, rng: np.random.Generator) -> Iterator[dict]:
    """Write `count` spoken questions, each wording equally often; yields a row after each.

    Row: file_name, kind (of `QUESTIONS`), text, voice, seconds.
    """
    sentences = [(kind, text) for kind, question in QUESTIONS.items() for text in question.wordings]
    low_pass = speech.low_pass(speaker.rate_hz)
    for number, place in enumerate(rng.permutation(np.arange(count) % len(sentences)).tolist()):
        kind, text = sentences[place]
        voice = Voice(split, speaker, low_pass, rng)
        yield {"kind": kind, "text": text} | _written(folder, number, voice, voice.say(text, LONGEST_S))


def write_several(folder: Path, split: str, count: int, speaker: Speaker, rng: np.random.Generator) -> Iterator[dict]:
    """Write `count` recordings of two to four digits in one voice; yields a row after each: file_name, digits, voice, seconds."""
    low_pass = speech.low_pass(speaker.rate_hz)
    for number in range(count):
        digits = rng.integers(len(WORDS), size=COUNTS[number % len(COUNTS)]).tolist()
        voice = Voice(split, speaker, low_pass, rng)
        samples = np.concatenate([voice.say(WORDS[digit]) for digit in digits])
        yield {"digits": digits} | _written(folder, number, voice, samples)


def _written(folder: Path, number: int, voice: Voice, samples: np.ndarray) -> dict:
    name = f"{number:05d}.flac"
    (folder / name).write_bytes(speech.flac(samples))
    return {"file_name": name, "voice": voice.name, "seconds": len(samples) / speech.RATE_HZ}
