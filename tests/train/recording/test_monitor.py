"""The record of a run, read back from the event files, metrics.jsonl and what was printed."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from helpers.records import make_run, record
from imp_ds.errors import UserError
from imp_ds.evaluation import ACCURACY, RETRIEVAL, Metric, Shown, by_name
from imp_ds.evaluation.metric import read_metric
from imp_ds.modalities.positions import grid_positions
from imp_ds.tasks import Batch
from imp_ds.train.recording.history import cut_lines
from imp_ds.train.recording.interval import StepRecord
from imp_ds.train.recording.monitor import Monitor
from imp_ds.train.recording.progress import Progress, duration

METRICS = [
    Metric("zero_shot/image/top1", 0.5, "share", "higher", Shown("zero-shot", panel=ACCURACY)),
    Metric("retrieval/image/image_to_text/R@1", 0.25, "share", "higher", Shown("retrieval R@1", panel=RETRIEVAL)),
]
RESULTS = by_name(METRICS)
USAGE = {"image": [[0.25, 0.75]], "text": [[0.5, 0.5]]}


class Processor:
    """The parts of an ImpProcessor that the monitor asks: patch sizes and the tokenizer."""

    class image_processor:
        patch = [4, 8, 8]

    class feature_extractor:
        patch, feature_size = [2, 4], 8

    class tokenizer:
        @staticmethod
        def batch_decode(ids, skip_special_tokens):
            return [f"caption {row[0]}" for row in ids.tolist()]


def read(folder) -> EventAccumulator:
    everything = dict(scalars=0, images=0, audio=0, tensors=0, histograms=0)
    return EventAccumulator(str(folder / "tensorboard"), size_guidance=everything).Reload()


def curve(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def words(events: EventAccumulator, tag: str) -> str:
    return events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()


def picture(events: EventAccumulator, tag: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string)))


def test_curves_are_means_over_the_log_interval(tmp_path):
    monitor = Monitor(tmp_path, make_run(), enabled=True, total_steps=8, moe_layers=[3])
    record(monitor, 1, "image_text", 4.0)
    record(monitor, 2, "film_text", 3.0)
    record(monitor, 3, "image_text", 2.0)
    record(monitor, 4, "image_text", 1.0)
    monitor.record_evaluation(4, METRICS, USAGE)
    monitor.record_evaluation(4, [METRICS[0]._replace(value=0.625)], {}, split="test")
    monitor.close()
    events = read(tmp_path)
    assert curve(events, "train/image_text/loss") == [(2, 4.0), (4, 1.5)]  # (2 + 1) / 2
    assert curve(events, "train/film_text/loss") == [(2, 3.0)]
    assert curve(events, "train/image_text/accuracy/vision_to_text") == [(2, 0.5), (4, 0.5)]
    assert curve(events, "train/image_text/temperature/vision_text") == [(2, 0.25), (4, 0.25)]
    assert curve(events, "schedule/image_text/share") == [(2, 0.5), (4, 0.75)]  # 1 of 2, then 3 of 4
    assert curve(events, "schedule/film_text/share") == [(2, 0.5), (4, 0.25)]
    assert curve(events, "optimizer/learning_rate") == [(2, pytest.approx(0.02)), (4, pytest.approx(0.04))]
    assert curve(events, "optimizer/grad_norm") == [(2, 1.5), (4, 3.5)]  # (1 + 2) / 2, (3 + 4) / 2
    assert curve(events, "perf/examples_per_s") == [(2, 64.0), (4, 64.0)]  # 64 examples in 2 x 0.5 s
    assert curve(events, "perf/tokens_per_s") == [(2, 1280.0), (4, 1280.0)]
    assert curve(events, "perf/data_wait_share") == [(2, 0.25), (4, 0.25)]
    assert 0.01 < curve(events, "perf/memory_gib")[0][1] < 1000
    assert curve(events, "moe/layer3/usage_expert0_vision")[0] == (2, 0.25)
    assert curve(events, "moe/layer3/usage_expert1_text")[0] == (2, 0.625)  # 1 - (0.25 + 0.125)
    assert curve(events, "moe/layer3/dropped_fraction_text")[0] == (2, 0.125)
    assert curve(events, "moe/layer3/mean_combine_weight_vision")[0] == (2, 0.5)
    assert curve(events, "moe/layer3/z_loss")[0] == (2, 0.625)  # (2 x 0.25 + 2 x 0.375) / 2 modalities
    assert curve(events, "zero_shot/image/top1") == [(4, 0.5)] and curve(events, "test/zero_shot/image/top1") == [(4, 0.625)]
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert charts["layer3, vision"] == ["moe/layer3/usage_expert0_vision", "moe/layer3/usage_expert1_vision"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [("train", 2), ("train", 4), ("evaluation", 4), ("evaluation", 4)]
    assert lines[2]["results"] == RESULTS and lines[2]["usage"] == USAGE
    assert [read_metric(name, RESULTS[name], facts) for name, facts in lines[2]["metrics"].items()] == METRICS


def test_utilisation_is_reported_by_task(tmp_path):
    monitor = Monitor(tmp_path, make_run(log_every=4), enabled=True, total_steps=8, peak_flops=1000.0)
    values = {"loss": torch.tensor(1.0), "grad_norm": None}
    for step, (task, seconds, flops) in enumerate([("a", 0.5, 100.0), ("a", 1.5, 700.0), ("b", 0.5, 50.0), ("c", 0.5, 0.0)], 1):
        monitor.record_step(step, [StepRecord(task, values, {}, 1, 1, seconds, 0.25, flops)], 0.0)
    monitor.close()
    tasks = json.loads((tmp_path / "metrics.jsonl").read_text())["tasks"]
    # 800 of the 2 x 1000 that a's two seconds could have held, 50 of 500; c has not said what it did
    assert (tasks["a"]["mfu"], tasks["b"]["mfu"], "mfu" in tasks["c"]) == (pytest.approx(0.4), pytest.approx(0.1), False)
    events = read(tmp_path)
    assert curve(events, "perf/mfu/a") == [(4, pytest.approx(0.4))] and curve(events, "perf/mfu/b") == [(4, pytest.approx(0.1))]
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("train/") and "mfu" in tag]


def test_a_step_of_several_tasks_counts_for_each_by_its_share_of_the_ranks(tmp_path):
    """Of 4 ranks, in the first step 3 train a and 1 trains b, in the second all train a: a has 1.75 steps, b 0.25."""
    monitor = Monitor(tmp_path, make_run(log_every=2), enabled=True, total_steps=2, peak_flops=100.0)
    part = lambda task, loss, share, flops: StepRecord(  # noqa: E731
        task, {"loss": loss, "grad_norm": 1.0}, {}, int(8 * share), int(80 * share), 2 * share, 0.5 * share, flops, share
    )
    monitor.record_step(1, [part("a", 4.0, 0.75, 30.0), part("b", 6.0, 0.25, 5.0)], 0.1)
    monitor.record_step(2, [part("a", 1.0, 1.0, 40.0)], 0.1)
    monitor.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["tasks"]["a"]["steps"], line["tasks"]["b"]["steps"]) == (1.75, 0.25)
    assert line["tasks"]["a"]["loss"] == pytest.approx((0.75 * 4 + 1) / 1.75) and line["tasks"]["b"]["loss"] == 6.0
    assert line["shares"] == {"a": 0.875, "b": 0.125}
    assert line["step_seconds"] == 2.0 and line["examples_per_s"] == 4.0 and line["tokens_per_s"] == 40.0
    assert line["data_wait_share"] == 0.25 and line["tasks"]["b"]["data_wait_share"] == 0.25
    # a: 70 of the 350 that its 3.5 seconds could have held; b: 5 of 50
    assert (line["tasks"]["a"]["mfu"], line["tasks"]["b"]["mfu"]) == (pytest.approx(0.2), pytest.approx(0.1))


def test_an_interval_ends_even_when_its_last_step_was_skipped_and_what_is_not_finite_is_null(tmp_path):
    monitor = Monitor(tmp_path, make_run(steps=5, log_every=3), enabled=True, total_steps=5)
    for step in (1, 2, 4, 5):  # step 3 would have ended the interval
        record(monitor, step, "image_text", float("nan") if step == 5 else float(step))
    monitor.close()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["tasks"]["image_text"]["steps"]) for line in lines] == [(4, 3), (5, 1)]
    assert lines[0]["tasks"]["image_text"]["loss"] == pytest.approx(7 / 3)
    assert lines[1]["tasks"]["image_text"]["loss"] is None


def test_a_resumed_run_forgets_what_it_will_do_again(tmp_path):
    monitor = Monitor(tmp_path, make_run(), enabled=True, total_steps=8)
    for step in range(1, 7):
        record(monitor, step, "image_text", float(step))
    monitor.record_evaluation(6, METRICS, {})
    monitor.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')  # the process was killed while it wrote
    monitor = Monitor(tmp_path, make_run(), enabled=True, total_steps=8, start_step=4)
    for step in range(5, 9):
        record(monitor, step, "film_text", 10.0 * step)
    monitor.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], *line["tasks"]) for line in lines] == [
        (2, "image_text"), (4, "image_text"), (6, "film_text"), (8, "film_text"),
    ]  # fmt: skip
    events = read(tmp_path)
    assert [step for step, _ in curve(events, "train/image_text/loss")] == [2, 4]
    assert curve(events, "schedule/image_text/share")[-1] == (8, 0.5)  # 4 steps before, 4 of the other task since
    assert curve(events, "zero_shot/image/top1") == []


def test_a_damaged_history_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(UserError, match="line 2"):
        cut_lines(tmp_path / "metrics.jsonl", 5)


def image_batch() -> tuple[Batch, np.ndarray]:
    """Two 32 x 32 images of 16 patches, as the processor cuts them; the last patch of the second image is dropped."""
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    grid = images.reshape(2, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 8 * 8 * 3)
    patches = np.tile(grid, (1, 1, 4))  # the one frame, four times
    positions = np.tile(grid_positions(1, 4, 4), (2, 1, 1))
    patches[1, 15], positions[1, 15] = patches[1, 0], positions[1, 0]
    vision = {"pixel_values": torch.from_numpy(patches), "pixel_positions": torch.from_numpy(positions)}
    text = {"input_ids": torch.tensor([[7, 0], [9, 0]]), "attention_mask": torch.ones(2, 2)}
    return Batch("image_text", {"vision": vision, "text": text}, {"label": torch.tensor([3, 4])}), images


def video_batch() -> tuple[Batch, np.ndarray]:
    """One video of 8 frames of 64 x 64 in patches of 4 x 8 x 8, and a spectrogram of 6 frames and 8 bins in patches of 2 x 4."""
    film = np.random.default_rng(1).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    patches = film.reshape(2, 4, 8, 8, 8, 8, 3).transpose(0, 2, 4, 1, 3, 5, 6).reshape(1, 128, -1)
    vision = {"pixel_values": torch.from_numpy(patches), "pixel_positions": torch.from_numpy(grid_positions(2, 8, 8))[None]}
    waveform = np.arange(48, dtype=np.float32).reshape(6, 8)
    cells = waveform.reshape(3, 2, 2, 4).transpose(0, 2, 1, 3).reshape(1, 6, 8)
    audio = {"input_features": torch.from_numpy(cells), "feature_positions": torch.from_numpy(grid_positions(3, 2))[None]}
    return Batch("film_speech_text", {"vision": vision, "audio": audio}, {}), film


def test_samples_show_what_the_model_is_fed(tmp_path):
    monitor = Monitor(tmp_path, make_run(), enabled=True, total_steps=8)
    (images, pixels), (films, film) = image_batch(), video_batch()
    tone = 0.5 * np.sin(np.arange(800) / 5).astype(np.float32)
    batches, waveforms = {"image_text": images, "film_speech_text": films}, {"film_speech_text": [(tone, 16000)]}
    monitor.log_start(batches, Processor, '{"a": 1}', waveforms)
    monitor.close()
    events = read(tmp_path)
    assert '"a": 1' in words(events, "configuration")
    shown = picture(events, "samples/image_text/pictures")  # 32 pixels three times each; 2 white columns between
    assert shown.shape == (96, 96 + 2 + 96, 3)
    np.testing.assert_array_equal(shown[1::3, 1:96:3], pixels[0])
    second = shown[1::3, 99::3]
    np.testing.assert_array_equal(second[:24], pixels[1][:24])
    assert (second[24:, 24:] == 128).all() and (shown[:, 96:98] == 255).all()
    strip = picture(events, "samples/film_speech_text/frame_strips")  # 64 pixels twice each
    assert strip.shape == (128, 8 * 128 + 7 * 2, 3)
    np.testing.assert_array_equal(strip[::2, 5 * 130 : 5 * 130 + 128 : 2], film[5])
    spectrogram = picture(events, "samples/film_speech_text/spectrograms")  # 8 bins high, 12 times each; 6 frames wide
    assert spectrogram.shape == (96, 72, 3)
    brightness = spectrogram[6::12, 6::12].astype(int).sum(-1)
    assert (np.diff(brightness, axis=1) > 0).all() and (np.diff(brightness, axis=0) < 0).all()  # louder later, and upwards
    table = words(events, "samples/image_text/captions")
    assert "| 1 | caption 7 | 3 |" in table and "| 2 | caption 9 | 4 |" in table
    (waveform,) = events.Audio("samples/film_speech_text/audio_1")
    assert (waveform.sample_rate, waveform.length_frames) == (16000, 800)


def test_a_dropped_piece_of_a_spectrogram_is_grey(tmp_path):
    batch, _ = video_batch()
    audio = batch.inputs["audio"]
    kept = {name: tensor[:, :5] for name, tensor in audio.items()}  # without the upper half of the last two frames
    monitor = Monitor(tmp_path, make_run(), enabled=True, total_steps=8)
    monitor.log_start({"film_speech_text": Batch("film_speech_text", {"audio": kept}, {})}, Processor, "{}")
    monitor.close()
    shown = picture(read(tmp_path), "samples/film_speech_text/spectrograms")
    assert (shown[:48, 48:] == 128).all() and not (shown[48:, 48:] == 128).all(-1).any()


def test_the_end_has_hyperparameters_projector_and_picture(tmp_path):
    monitor = Monitor(tmp_path, make_run(), enabled=True, total_steps=8, moe_layers=[1])
    for step in range(1, 9):
        record(monitor, step, "image_text", 1.0 / step)
    monitor.record_evaluation(8, METRICS, USAGE)
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    monitor.log_projector("image", vectors, ["one", "two", "two"], torch.rand(3, 3, 16, 16), step=8)
    monitor.log_projector("audio", vectors, ["one", "two", "two"], step=8)
    monitor.finish({"zero_shot/image/top1": 0.75})
    monitor.close()
    events = read(tmp_path)
    assert curve(events, "final/zero_shot/image/top1") == [(8, 0.75)]
    tags = events.PluginTagToContent("hparams")
    plugin = {tag: HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content) for tag in tags}
    start = plugin["_hparams_/session_start_info"].session_start_info.hparams
    assert start["train.steps"].number_value == 8 and start["model.size"].string_value == "tiny"
    assert start["tasks.image_text.batch_size"].number_value == make_run().task("image_text").batch_size
    assert [m.name.tag for m in plugin["_hparams_/experiment"].experiment.metric_infos] == ["final/zero_shot/image/top1"]
    folder = tmp_path / "tensorboard"
    projector = (folder / "projector_config.pbtxt").read_text()
    assert projector.count("embeddings {") == 2 and "00008/image/sprite.png" in projector
    assert (folder / "00008/image/metadata.tsv").read_text().split() == ["one", "two", "two"]
    assert np.loadtxt(folder / "00008/audio/tensors.tsv").tolist() == vectors.tolist()
    drawn = np.asarray(Image.open(tmp_path / "results.png").convert("RGB"))
    np.testing.assert_array_equal(picture(events, "results"), drawn)
    assert not [p for p in folder.iterdir() if p.is_dir() and p.name != "00008"], "the run is one run in TensorBoard"


def test_other_ranks_write_nothing(tmp_path, capsys):
    monitor = Monitor(tmp_path, make_run(), enabled=False, total_steps=8)
    monitor.log_start({}, Processor, "{}")
    record(monitor, 1, "image_text", 1.0)
    monitor.record_evaluation(1, METRICS, USAGE)
    monitor.log_projector("image", torch.zeros(1, 2), step=1)
    monitor.finish(RESULTS)
    monitor.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_a_log_file_gets_plain_lines(capsys, tmp_path):
    monitor = Monitor(tmp_path, make_run(), enabled=True, total_steps=8)
    record(monitor, 1, "image_text", 4.0)
    record(monitor, 2, "film_text", 3.0)
    monitor.record_evaluation(2, METRICS, {})
    monitor.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step 2/8  image_text 4.000  film_text 3.000  ") and first.endswith(" left")
    assert "  lr 2.00e-02  " in first and " samples/s  " in first
    assert second == "step 2, validation: zero-shot image 50.0 %; retrieval R@1 image_to_text 25.0 %"


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    stream = io.StringIO()
    progress = Progress(100, 40, stream=stream)
    progress.advance(50)
    progress.report({"image_text": 1.0, "film_text": 2.0}, "lr 1.00e-03")
    progress.log("hello")
    progress.close()
    assert "50/100" in stream.getvalue() and "loss 1.500" in stream.getvalue() and "hello" in stream.getvalue()


@pytest.mark.parametrize("seconds, text", [(45.4, "45 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (59.7, "1 min 0 s")])
def test_duration(seconds, text):
    assert duration(seconds) == text
