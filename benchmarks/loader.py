"""How fast batches are fed, against raw decoding, `datasets` with torch's DataLoader, and `webdataset`.

    python benchmarks/loader.py [--data ../shared/data/real] [--rounds 3] [--seconds 2.5] [--out benchmarks/results/loader.md]

All read the same tar shards (benchmarks/corpora.py) and do the same work by the same functions with as many workers, one thread
each (benchmarks/feeders.py). Raw decoding and the peers do it for one sample from beginning to end and then for the next, as maps
over samples do; our loader, and "raw, in turn", one kind of work for all samples of a batch before the next kind
(imp_ds/modalities/in_turn.py). They take turns, `--rounds` times; the median is reported. About 10 minutes; `--only recordings`
measures a part.
"""

import argparse
import datetime
import gc
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from corpora import corpora  # noqa: E402
from feeders import CONTESTANTS, PEERS, PREFETCH, Ours, Raw, RawInTurn  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "real", help="the real corpus")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.5, help="that each contestant is measured in a round")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--only", default="", help="corpora whose names begin so")
    parser.add_argument("--peers-in-turn", action="store_true", help="let the peers decode as our loader does")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    if not (options.data / "images").is_dir():
        parser.error(f"--data: no folder {options.data / 'images'}; it wants the real corpus, with images/, videos/ and audio/")
    torch.set_num_threads(1)
    for peer in PEERS:
        peer.in_turn = options.peers_in_turn
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for corpus in corpora(options.data, Path(folder)):
            if corpus.name.startswith(options.only):
                for workers in options.workers:
                    rows.append(row(corpus, workers, measured(corpus, workers, Path(folder), options)))
                    print(rows[-1], flush=True)
    text = "\n".join([head(options), *rows]) + "\n"
    if options.out:
        options.out.write_text(text)


def measured(corpus, workers: int, folder: Path, options) -> dict[type, list[float]]:
    """Contestant -> samples a second, of each round."""
    rates = {kind: [] for kind in CONTESTANTS}
    contestants = [kind(corpus, workers, folder) for kind in CONTESTANTS]
    for _ in range(options.rounds):
        for contestant in contestants:
            rates[type(contestant)].append(contestant.rate(options.seconds))
            gc.collect()  # ends the workers
            time.sleep(0.2)
    return rates


def head(options) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "datasets", "webdataset", "pillow", "av", "soundfile"))
    names = [kind.name for kind in CONTESTANTS]
    return "\n".join(
        [
            "# Feeding: samples a second",
            "",
            f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()},",
            f"{packages}.",
            f"Medians of {options.rounds} rounds of {options.seconds:g} s in which all take turns, the last three columns of "
            f"ratios within a round; prefetch {PREFETCH}.",
            f"`python benchmarks/loader.py {' '.join(sys.argv[1:])}` makes this table.",
            "",
            f"| corpus | workers | {' | '.join(names)} | of raw | of raw, in turn | of the better peer |",
            "| --- | ---: | " + " | ".join(["---:"] * (len(names) + 3)) + " |",
        ]
    )


def row(corpus, workers: int, rates: dict[type, list[float]]) -> str:
    peers = [max(found) for found in zip(*(rates[kind] for kind in PEERS))]
    cells = [corpus.name, workers, *(f"{statistics.median(found):,.0f}" for found in rates.values())]
    for others in (rates[Raw], rates[RawInTurn], peers):
        cells.append(f"{statistics.median(ours / other for ours, other in zip(rates[Ours], others)):.2f}")
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
