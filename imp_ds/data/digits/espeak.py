"""eSpeak NG through ctypes, such that the same words in the same order give the same samples, in any process.

The library keeps phases, noise generators and voices in static variables that outlive espeak_Terminate, so each Speaker
loads a private copy of it: a library file with a new path has fresh statics. API: espeak-ng, `speak_lib.h`.
"""

import ctypes
import shutil
import tempfile
from pathlib import Path

import numpy as np

from imp_ds.errors import UserError

_SYNCHRONOUS, _DO_NOT_EXIT, _TEXT_IS_UTF8 = 2, 1 << 15, 1
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_BUFFER_MS = 500
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Speaker:
    """A context manager that speaks. `rate_hz` is the rate of the samples that `say` returns, 22050.

    Raises UserError when the library cannot be loaded.
    """

    def __enter__(self) -> "Speaker":
        self._folder = tempfile.TemporaryDirectory(prefix="espeak-")
        self._pieces = []
        self._callback = _CALLBACK(self._collect)
        try:
            self._load(Path(self._folder.name))
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, *_):
        self._library.espeak_Terminate()
        self._folder.cleanup()

    def _load(self, folder: Path):
        import espeakng_loader  # only those who build a corpus need it

        data = folder / "espeak-ng-data"
        # The library cuts paths at 160 bytes, and a virtual environment may lie deeper than that: a link shortens the way.
        data.symlink_to(espeakng_loader.get_data_path())
        copy = shutil.copy(espeakng_loader.get_library_path(), folder / "espeak.so")
        self.variants = {path.name for path in (data / "voices" / "!v").iterdir()}
        try:
            self._library = ctypes.CDLL(str(copy))
        except OSError as error:
            fix = "set TMPDIR to a folder that programs may be run from, or install espeakng-loader again"
            raise UserError("the speech library eSpeak NG cannot be loaded", got=error, fix=fix) from error
        self._library.espeak_Synth.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint,
                                               ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p]  # fmt: skip
        self.rate_hz = self._library.espeak_Initialize(_SYNCHRONOUS, _BUFFER_MS, str(folder).encode(), _DO_NOT_EXIT)
        if self.rate_hz <= 0:
            raise UserError("eSpeak NG cannot read its voices", got=data.resolve(), fix="install espeakng-loader again")
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples, count, _events) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, word: str, voice: str, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Speak a word: int16 [samples] with the silence that the library adds.

        Args:
            voice: accent+variant, as "en-us+f3".
            rate: words per minute, 80 to 450.
            pitch, pitch_range: 0 to 100, 50 is the voice's own.

        Raises UserError when the installed library does not have the voice.
        """
        self._seed()
        # An unknown variant would be spoken by the accent's plain voice, and no error raised: hence the second question.
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0 or voice.split("+")[1] not in self.variants:
            raise UserError("eSpeak NG does not have a voice of the corpus", got=voice, fix="install espeakng-loader 0.2.4")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        text = word.encode() + b"\0"
        self._pieces.clear()
        self._library.espeak_Synth(text, len(text), 0, 1, 0, _TEXT_IS_UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.int16)

    def _seed(self):
        """Breath is noise: some of it comes from eSpeak's generator, some from the C library's."""
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(1)
