"""Speed of our log-mel against transformers' extractors on the same audio, in the same run.

    python benchmarks/log_mel.py [--threads N] [--out benchmarks/results/log_mel.md]

Each extractor computes a 10 s audio; ours has the same settings as ASTFeatureExtractor (400 samples every 160, FFT of 512,
128 mel bins, preemphasis, offset removed), in float32 and in float64 (`precise`), and as Speech2TextFeatureExtractor (80
mel bins, Povey window, float64); the largest differences from both are printed too. Short runs of each alternate, so that a busy
machine slows all of them alike; the median over all calls is reported.
"""

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import ASTFeatureExtractor, ClapFeatureExtractor, Speech2TextFeatureExtractor, WhisperFeatureExtractor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from imp_ds.modalities.audio.log_mel import LogMel  # noqa: E402

SECONDS, ROUNDS, CALLS = 10, 6, 12
AST = dict(frame_length=400, hop_length=160, mel_bins=128, f_min=20.0, f_max=8000.0, periodic_window=False, preemphasis=0.97,
           remove_offset=True, floor=1.192092955078125e-07)  # fmt: skip
CLAP = dict(sampling_rate=48000, frame_length=1024, hop_length=480, mel_bins=64, f_min=0.0, f_max=14000.0, mel_scale="slaney",
            mel_norm="slaney", triangles="hertz", center=True, log="log10", floor=1e-10)  # fmt: skip
# Kaldi's filterbank of audio in 16 bits; ours has it in [-1, 1], so the floor is that of 2**-30 of the energy.
SPEECH = {**AST, "mel_bins": 80, "window_power": 0.85, "floor": AST["floor"] / 2**30, "precise": True}
OURS = "ours"
SPEECH_ROW = f"{OURS}, settings of Speech2Text, float64"


def errors() -> list[str]:
    """Largest absolute difference from each extractor, on the recordings that are timed."""
    noise = np.random.default_rng(0).normal(0, 0.1, 16000 * SECONDS).astype(np.float32)
    speech = Speech2TextFeatureExtractor(do_ceptral_normalize=False)(noise, sampling_rate=16000)["input_features"][0]
    ast = ASTFeatureExtractor(do_normalize=False, max_length=998)(noise, sampling_rate=16000)["input_values"][0]
    rows = [(SPEECH_ROW, LogMel(**SPEECH), speech - 30 * np.log(2.0))]
    for name, precise in (("float32", False), ("float64", True)):
        rows.append((f"{OURS}, settings of AST, {name}", LogMel(**AST, precise=precise), ast))
    tensor = torch.from_numpy(noise)[None]
    lines = [f"| {name} | {np.abs(ours(tensor)[0].numpy() - theirs).max():.1e} |" for name, ours, theirs in rows]
    return ["\n| settings | largest difference from the extractor |", "|---|---|", *lines]


def candidates() -> dict:
    """Name -> function of no arguments that computes one clip."""
    rng = np.random.default_rng(0)
    waves = {rate: rng.normal(0, 0.1, rate * SECONDS).astype(np.float32) for rate in (16000, 48000)}
    tensor = torch.from_numpy(waves[16000])[None]
    batch = torch.stack([tensor[0]] * 8)
    single, precise = LogMel(**AST), LogMel(**AST, precise=True)
    short = LogMel(frame_length=400, hop_length=160, mel_bins=64)
    ast, clap = ASTFeatureExtractor(), ClapFeatureExtractor()
    speech = Speech2TextFeatureExtractor(do_ceptral_normalize=False)
    as_clap = LogMel(**CLAP)
    whisper = WhisperFeatureExtractor(chunk_length=SECONDS)
    as_speech = LogMel(**SPEECH)
    return {
        SPEECH_ROW: (1, lambda: as_speech(tensor)),
        "ASTFeatureExtractor": (1, lambda: ast(waves[16000], sampling_rate=16000)),
        f"{OURS}, settings of AST, float32": (1, lambda: single(tensor)),
        f"{OURS}, settings of AST, float32, batch of 8": (8, lambda: single(batch)),
        f"{OURS}, settings of AST, float64": (1, lambda: precise(tensor)),
        f"{OURS}, settings of AST, float64, batch of 8": (8, lambda: precise(batch)),
        f"{OURS}, settings of CLAP, float32": (1, lambda: as_clap(torch.from_numpy(waves[48000])[None])),
        f"{OURS}, 64 mel bins, no preemphasis, float32": (1, lambda: short(tensor)),
        f"{OURS}, IMP's settings (2048/1024), float32": (1, lambda default=LogMel(): default(tensor)),
        "Speech2TextFeatureExtractor": (1, lambda: speech(waves[16000], sampling_rate=16000)),
        "ClapFeatureExtractor (48 kHz)": (1, lambda: clap(waves[48000], sampling_rate=48000)),
        "WhisperFeatureExtractor (torch.stft)": (1, lambda: whisper(waves[16000], sampling_rate=16000)),
    }


def measure(functions: dict) -> dict[str, float]:
    """Name -> median milliseconds for one clip."""
    times = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, (clips, function) in functions.items():
            function()  # warms the caches
            for _ in range(CALLS):
                start = time.perf_counter()
                function()
                times[name].append((time.perf_counter() - start) * 1e3 / clips)
    return {name: statistics.median(values) for name, values in times.items()}


def table(threads: int) -> list[str]:
    torch.set_num_threads(threads)
    times = measure(candidates())
    ast, speech = times["ASTFeatureExtractor"], times["Speech2TextFeatureExtractor"]
    rows = [f"| {name} | {ms:.2f} | {ast / ms:.1f} | {speech / ms:.1f} |" for name, ms in times.items()]
    header = ["| 10 s of audio | ms per clip | times AST's speed | times Speech2Text's speed |", "|---|---|---|---|"]
    return [f"\ntorch threads: {threads}\n", *header, *rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, torch.get_num_threads()])
    parser.add_argument("--out", type=Path, help="also write the table here")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="At least one mel filter")
    libraries = f"torch {torch.__version__}, transformers {transformers.__version__}, numpy {np.__version__}"
    versions = f"Python {platform.python_version()}, {libraries}"
    lines = [
        "# Log-mel spectrograms",
        "",
        f"`python benchmarks/log_mel.py`, {datetime.date.today()}, {os.cpu_count()} cores, {versions}.",
        f"Median of {ROUNDS * CALLS} calls.",
    ]
    lines += errors()
    for threads in dict.fromkeys(args.threads):
        lines += table(threads)
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
