"""The TensorBoard log of a run: one folder, one writer, on rank 0.

Shapes: N rows, C width of a common space, H height, W width.
"""

import os
import socket
import sys
import time
from pathlib import Path

import numpy as np
import torch

from imp_ds.train.recording.record_file import RecordFile
from imp_ds.train.recording.trackers.tracker import Tracker


class EventFile:
    """What torch's FileWriter writes events into: one event file of `folder`, for which a full disk is no error."""

    def __init__(self, folder: Path):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder = folder
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self._file = RecordFile(folder / name)
        self._writer = RecordWriter(self)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.flush()

    def get_logdir(self) -> str:
        return str(self.folder)

    def add_event(self, event) -> None:
        self._writer.write(event.SerializeToString())

    def write(self, record: bytes) -> None:
        """An event, framed by the RecordWriter."""
        self._file.add(record)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _summary_writer(folder: Path, purge_step: int | None):
    """A SummaryWriter whose events go into an EventFile. The modules are slow to import, and only rank 0 needs them."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from torch.utils.tensorboard import FileWriter, SummaryWriter

    class Files(FileWriter):
        def __init__(self):
            self.event_writer = EventFile(folder)

    class Writer(SummaryWriter):
        def _get_file_writer(self):
            if self.file_writer is None:
                self.file_writer = Files()
                self.all_writers = {self.file_writer.get_logdir(): self.file_writer}
                if purge_step is not None:
                    self.file_writer.add_event(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
            return self.file_writer

    return Writer(str(folder))


class TensorBoard(Tracker):
    """Writes into `folder` through torch's SummaryWriter. Where a disk is full, events wait until there is room, and pictures
    and vectors of the projector are left out.

    Args:
        start_step: steps done before; what an earlier process wrote beyond them is hidden, since it is trained again.
    """

    def __init__(self, folder: Path, start_step: int = 0):
        self.writer = _summary_writer(Path(folder), start_step + 1 if start_step else None)
        self._charts: dict[str, dict[str, list]] = {}

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)
        self.flush()

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        self.writer.add_text(tag, markdown, step)

    def picture(self, tag: str, picture_HW3: np.ndarray, step: int = 0) -> None:
        self.writer.add_image(tag, picture_HW3, step, dataformats="HWC")

    def audio(self, tag: str, samples_N: np.ndarray, rate: int, step: int = 0) -> None:
        """Samples in [-1, 1]."""
        samples = torch.from_numpy(np.clip(np.asarray(samples_N, np.float32), -1, 1))
        self.writer.add_audio(tag, samples.unsqueeze(0), step, sample_rate=rate)

    def expert_charts(self, tags: dict[str, list[str]]) -> None:
        """Curves that are read together, on one chart each: chart title -> scalar tags (tab "Custom scalars").

        The layout is one summary, so it is written again when a chart has come to it.
        """
        wanted = {title: ["Multiline", curves] for title, curves in tags.items()}
        if wanted and self._charts.get("experts") != wanted:
            self._charts = {"experts": wanted}
            self.writer.add_custom_scalars(self._charts)

    def embedding(self, tag: str, vectors_NC: torch.Tensor, labels: list[str] | None, images_N3HW, step: int) -> None:
        """Points of the projector, with labels and thumbnails in [0, 1] where given."""
        try:
            self.writer.add_embedding(vectors_NC.float().cpu(), metadata=labels, label_img=images_N3HW, global_step=step, tag=tag)
        except OSError as error:
            print(f"TensorBoard's projector lacks {tag}: {error.strerror or error}", file=sys.stderr, flush=True)

    def hyperparameters(self, parameters: dict, results: dict[str, float], step: int) -> None:
        """The run as a row of the HParams tab, `results` its metrics.

        SummaryWriter.add_hparams would put them into a folder of their own, which TensorBoard shows as another run.
        """
        from torch.utils.tensorboard.summary import hparams

        writer = self.writer._get_file_writer()
        for summary in hparams(parameters, results):
            writer.add_summary(summary, step)
        self.scalars(step, results)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def stored_pictures(folder: Path, prefixes: tuple[str, ...]) -> dict[str, bytes]:
    """{tag: PNG} of the last picture under each tag that begins with one of `prefixes`, in the event files of a folder. What is
    damaged in them, and all behind it, is left out."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        try:
            for event in EventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    parts = value.tensor.string_val  # width, height, pictures
                    if value.tag.startswith(prefixes) and value.metadata.plugin_data.plugin_name == "images" and len(parts) > 2:
                        found[value.tag] = parts[2]
        except (OSError, ValueError, RuntimeError):  # tensorboard raises these of files that are cut off or damaged
            continue
    return found
