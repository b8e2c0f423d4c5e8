"""The ten words spoken by eSpeak NG in many voices, as FLAC. A voice is an accent and a variant, as in "en-us+f3".

Splits are by variant, which is what makes the timbre: no variant is in two splits, and variants that differ by a hair
(klatt, robosoft, steph, ...) are in the same one. Left out are whispers and the variants whose words a linear classifier,
trained on all other variants, did not distinguish (below 95%): zac, RicishayMax, Marco, Alicia, announcer.
"""

from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import firwin, resample_poly

from imp_ds.data.digits.captions import WORDS, captions
from imp_ds.data.digits.espeak import Speaker

RATE_HZ = 16_000
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc", "en-029")
VARIANTS = {
    "train": (
        "Alex", "Andrea", "Andy", "Annie", "AnxiousAndy", "Demonic", "Denis", "Jacky", "Lee", "Michael", "Mr serious", "Reed",
        "Tweaky", "UniRobot", "adam", "anika", "anikaRobot", "aunty", "belinda", "benjamin", "caleb", "croak", "david", "ed",
        "edward", "edward2", "f1", "f2", "f4", "fast", "grandma", "grandpa", "gustave", "ian", "iven", "iven2", "john",
        "kaukovalta", "klatt", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6", "m1", "m2", "m4", "m5", "m6", "m7", "max",
        "mike2", "pablo", "pedro", "robosoft", "robosoft2", "robosoft3", "robosoft4", "robosoft5", "robosoft6", "robosoft7",
        "robosoft8", "shelby", "travis",
    ),
    "validation": ("Nguyen", "f5", "sandro", "antonio", "m8", "marcelo", "quincy", "rob", "robert", "boris"),
    "test": (
        "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Mario", "Mike", "Storm", "f3", "iven3", "iven4", "linda", "m3", "michel",
        "miguel", "norbert", "paul", "steph", "steph2", "steph3", "victor",
    ),
}  # fmt: skip
CLIPS = {"train": 3000, "validation": 400, "test": 800}
_PEAK = 0.9
_AUDIBLE = 0.01  # of the peak; what is below at either end is the silence that eSpeak adds
_SILENCE_S = (0.02, 0.15)  # put back at either end


def write(folder: Path, split: str, count: int, speaker: Speaker, rng: np.random.Generator) -> Iterator[dict]:
    """Write `count` clips as 16 kHz mono FLAC into `folder`; yields a metadata row after each.

    Row: file_name, label (0 to 9), word, voice, rate (words per minute), pitch and range (0 to 100), seconds, captions.
    """
    filter_ = low_pass(speaker.rate_hz)
    for number, label in enumerate(rng.permutation(np.arange(count) % len(WORDS)).tolist()):
        voice = f"{rng.choice(ACCENTS)}+{rng.choice(VARIANTS[split])}"
        rate, pitch, pitch_range = (int(rng.integers(low, high)) for low, high in ((130, 211), (25, 76), (20, 81)))
        spoken = speaker.say(WORDS[label], voice, rate, pitch, pitch_range)
        samples = finish(spoken, speaker.rate_hz, filter_, rng)
        name = f"{number:05d}.flac"
        (folder / name).write_bytes(flac(samples))
        yield {"file_name": name, "label": label, "word": WORDS[label], "voice": voice, "rate": rate, "pitch": pitch,
               "range": pitch_range, "seconds": len(samples) / RATE_HZ, "captions": captions("speech", label, rng)}  # fmt: skip


def finish(spoken: np.ndarray, rate_hz: int, low_pass: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Resample to 16 kHz, trim, scale to the peak, and surround by a little silence of random length: int16 [samples]."""
    ratio = Fraction(RATE_HZ, rate_hz)
    waveform = resample_poly(spoken.astype(np.float64), ratio.numerator, ratio.denominator, window=low_pass)
    loudest = np.abs(waveform).max(initial=0.0)
    assert loudest > 0, "eSpeak NG spoke nothing"
    audible = np.flatnonzero(np.abs(waveform) > _AUDIBLE * loudest)
    waveform = waveform[audible[0] : audible[-1] + 1] * (_PEAK / loudest)
    before, after = (int(rng.uniform(*_SILENCE_S) * RATE_HZ) for _ in range(2))
    return np.rint(np.pad(waveform, (before, after)) * 32767).astype(np.int16)


def low_pass(rate_hz: int) -> np.ndarray:
    """The filter that resample_poly would otherwise design anew for every clip: passes what both rates can hold."""
    ratio = Fraction(RATE_HZ, rate_hz)
    widest = max(ratio.numerator, ratio.denominator)
    return firwin(20 * widest + 1, 1 / widest, window=("kaiser", 5.0))


def flac(samples: np.ndarray) -> bytes:
    """int16 [samples] as FLAC. In memory, because soundfile forces a file to the disk when it closes it: 2 ms each."""
    file = BytesIO()
    soundfile.write(file, samples, RATE_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()
