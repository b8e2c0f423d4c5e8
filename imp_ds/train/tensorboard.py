"""The TensorBoard log of a run: one folder, one writer, on rank 0.

Shapes: N rows, C width of a common space, H height, W width.
"""

import io
from pathlib import Path

import numpy as np
import torch


class TensorBoard:
    """Writes into `folder` through torch's SummaryWriter.

    Args:
        start_step: steps done before; what an earlier process wrote beyond them is hidden, since it is trained again.
    """

    def __init__(self, folder: Path, start_step: int = 0):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only rank 0 needs it

        self.writer = SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)
        self._charts: dict[str, dict[str, list]] = {}

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        self.writer.add_text(tag, markdown, step)

    def picture(self, tag: str, picture_HW3: np.ndarray, step: int = 0) -> None:
        self.writer.add_image(tag, picture_HW3, step, dataformats="HWC")

    def picture_file(self, tag: str, path: Path, step: int) -> None:
        from PIL import Image

        with Image.open(io.BytesIO(path.read_bytes())) as image:
            self.picture(tag, np.asarray(image.convert("RGB")), step)

    def sound(self, tag: str, samples_N: np.ndarray, rate: int, step: int = 0) -> None:
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
        self.writer.add_embedding(vectors_NC.float().cpu(), metadata=labels, label_img=images_N3HW, global_step=step, tag=tag)

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
