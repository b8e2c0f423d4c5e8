"""Feed damaged media to the decoders: python scripts/fuzz_media.py [--kinds video audio] [--mutations 30000] [--seed 0]

Each sample is decoded in a child process, which may end, hang or grow; the sample that did so is named, and kept under --found.
A sample passes when it is decoded or raises BadSample, within --seconds and --memory. Each is a pure function of its kind, the
seed and its number, given the same files to begin with. 30,000 of a kind take some ten minutes on one core. The last line says
what was found; the exit code is 1 for an escape.
"""

import argparse
import faulthandler
import io
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/data")]


def _video_files() -> dict[str, bytes]:
    from numbered_videos import KINDS, video_bytes

    return {f"{place}.{name.rpartition('.')[2]}": video_bytes(name) for place, name in enumerate(KINDS)}


def _audio_files() -> dict[str, bytes]:
    import soundfile
    from numbered_videos import video_bytes

    noise_NC = 0.3 * np.random.default_rng(0).standard_normal((1600, 2)).clip(-3, 3)
    files = {}
    for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64", "WAVEX"):
        buffer = io.BytesIO()
        soundfile.write(buffer, noise_NC, 16000, format=kind)
        files[f"{kind}.{kind.lower().removesuffix('ex')}"] = buffer.getvalue()
        files[f"{kind}.m4a"] = buffer.getvalue()  # by FFmpeg first
    buffer = io.BytesIO()
    soundfile.write(buffer, noise_NC, 16000, format="OGG", subtype="OPUS")
    files["opus.opus"] = buffer.getvalue()
    for kind in ("mp4", "mkv", "ts", "wmv", "avi", "flv"):
        files[f"video.{kind}"] = video_bytes(kind, tone=True)
    return files


def _decode_video(name: str, data: bytes, rng: np.random.Generator) -> None:
    from imp_ds.data.cache import MediaCache
    from imp_ds.data.decoding.film import read_film
    from imp_ds.data.media_facts import media_facts
    from imp_ds.data.samples import Media
    from imp_ds.tasks import VisionView

    media = Media(name, data=data)
    media_facts("vision", media)
    read_film(media, VisionView(frames=int(rng.integers(1, 9))), None, MediaCache(0))


def _decode_audio(name: str, data: bytes, rng: np.random.Generator) -> None:
    from imp_ds.data.cache import MediaCache
    from imp_ds.data.decoding.sound import read_sounds
    from imp_ds.data.media_facts import media_facts
    from imp_ds.data.samples import BadSample, Media

    media = Media(name, data=data)
    media_facts("audio", media)
    window, whole = (read_sounds([media], 0.02, [one], MediaCache(0))[0] for one in (rng, None))
    for result in (window, whole):
        if isinstance(result, BadSample):
            raise result


# kind: (files to begin with by name, how one is decoded)
KINDS: dict[str, tuple[Callable[[], dict[str, bytes]], Callable[[str, bytes, np.random.Generator], None]]] = {
    "video": (_video_files, _decode_video),
    "audio": (_audio_files, _decode_audio),
}


def sample(kind: str, seed: int, number: int, files: list[tuple[str, bytes]]) -> tuple[str, bytes, np.random.Generator]:
    """(name, damaged file, generator of the rest)."""
    from mutations import mutated

    rng = np.random.default_rng([seed, sorted(KINDS).index(kind), number])
    name, data = files[int(rng.integers(len(files)))]
    return name, mutated(data, rng), rng


def _files(folder: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


def work(kind: str, seed: int, begin: int, end: int, folder: Path, memory: int) -> None:
    """The child: decodes samples, says the number of each before and its outcome after."""
    import av

    from imp_ds.data.samples import BadSample

    faulthandler.enable()
    av.logging.set_level(None)
    resource.setrlimit(resource.RLIMIT_AS, (4 * memory, 4 * memory))  # the machine's memory is not ours to take
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files, decode = _files(folder), KINDS[kind][1]
    for number in range(begin, end):
        print("begin", number, flush=True)
        name, data, rng = sample(kind, seed, number, files)
        try:
            decode(name, data, rng)
            outcome = "decoded"
        except BadSample as bad:
            outcome = f"bad {bad.reason}"
        except BaseException as error:
            outcome = f"escape {type(error).__name__}: {error}".replace("\n", " ")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if grown > memory:
            print(f"escape took {grown >> 20} MiB", flush=True)
            return  # the peak would hide those of the next samples
        print(outcome, flush=True)


class Child:
    """A process that works, of which lines are read within a time."""

    def __init__(self, arguments: list[str], log: Path):
        self.log = log
        self._errors = log.open("wb")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        line = [sys.executable, __file__, "--work", *arguments]
        self._process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=self._errors, env=environment)
        self._rest = b""

    def line(self, seconds: float) -> str | None:
        """The next line; None where the child has ended. Raises TimeoutError."""
        until = time.monotonic() + seconds
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                return None
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def end(self) -> int:
        self._process.kill()
        self._errors.close()
        self._process.stdout.close()
        return self._process.wait()

    def exit_code(self) -> int:
        return self._process.wait()


def fuzz(kind: str, options: argparse.Namespace, folder: Path) -> Counter:
    """Outcomes of all samples of a kind; what escapes is printed and kept."""
    folder.mkdir()
    for name, data in KINDS[kind][0]().items():
        (folder / name).write_bytes(data)
    outcomes, number, began = Counter(), 0, time.monotonic()
    while number < options.mutations:
        limits = [kind, str(options.seed), str(number), str(options.mutations), str(folder), str(options.memory << 20)]
        number = _follow(Child(limits, folder.parent / f"{kind}.log"), kind, options, folder, outcomes, number, began)
    return outcomes


def _follow(child: Child, kind: str, options, folder: Path, outcomes: Counter, number: int, began: float) -> int:
    """Read what a child says until it ends; the number of the next sample."""
    begun, first, outcome = False, number, ""
    while True:
        try:
            line = child.line(options.seconds if begun else 60)
            outcome = line if line is not None else f"escape ended with exit code {child.exit_code()}"
        except TimeoutError:
            line, outcome = None, f"escape took over {options.seconds} s"
        if line is None and not begun:  # between two samples: the child is through, or ended itself after it took too much
            child.end()
            if number == first:
                raise SystemExit(f"{outcome} before the first sample: {child.log.read_text(errors='replace')[-2000:]}")
            return number
        if line is not None and line.startswith("begin "):
            begun = True
            continue
        outcomes[" ".join(outcome.split()[:3]) if outcome.startswith("bad") else outcome.split()[0]] += 1
        if outcome.startswith("escape"):
            _keep(kind, options, folder, number, outcome)
        number, begun = number + 1, False
        if number % 1000 == 0:
            rate = sum(outcomes.values()) / (time.monotonic() - began)
            print(f"{kind}: {number} of {options.mutations}, {rate:.0f} a second, {dict(outcomes)}", flush=True)
        if line is None:
            child.end()
            return number


def _keep(kind: str, options: argparse.Namespace, folder: Path, number: int, outcome: str) -> None:
    options.found.mkdir(parents=True, exist_ok=True)
    name, data, _ = sample(kind, options.seed, number, _files(folder))
    path = options.found / f"{kind}-{options.seed}-{number}-{name}"
    path.write_bytes(data)
    print(f"{kind} {number}: {outcome}: {path}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        kind, seed, begin, end, folder, memory = sys.argv[2:]
        work(kind, int(seed), int(begin), int(end), Path(folder), int(memory))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=sorted(KINDS))
    parser.add_argument("--mutations", type=int, default=30_000, help="samples of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="for one sample")
    parser.add_argument("--memory", type=int, default=2560, help="MiB of a process that decodes, with its libraries")
    parser.add_argument("--found", type=Path, default=Path("fuzz_found"), help="folder of the samples that escaped")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {kind: fuzz(kind, options, Path(folder) / kind) for kind in options.kinds}
    escapes = sum(outcomes["escape"] for outcomes in found.values())
    said = "; ".join(f"{kind} {dict(outcomes)}" for kind, outcomes in found.items())
    print(f"{escapes} escapes in {sum(map(Counter.total, found.values()))} samples: {said}")
    sys.exit(escapes > 0)


if __name__ == "__main__":
    main()
