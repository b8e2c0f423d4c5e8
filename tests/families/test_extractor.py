"""How a run hears: standardised by its corpus, or as the model that it starts from does."""

import io

import numpy as np
import pytest
import soundfile

from imp_ds import ImpProcessor
from imp_ds.families.imp.processor import build_extractor
from imp_ds.modalities.media import Media
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor
from imp_ds.recipes import get_recipe


class Sounds:
    """Six recordings of noise, each ten times as loud as the one before."""

    def __len__(self):
        return 6

    def read(self, row):
        out = io.BytesIO()
        noise = np.random.default_rng(row).normal(0, 1e-6 * 10**row, 8000)
        soundfile.write(out, noise, 8000, format="WAV", subtype="FLOAT")
        return {"audio": Media(f"{row}.wav", data=out.getvalue()), "text": ["noise"]}


@pytest.mark.parametrize("normalize", [False, True])
def test_a_run_takes_its_corpus_with_mean_0_and_variance_1(normalize, tmp_path):
    run = get_recipe("real_small")
    run.data.audio.normalize = normalize
    config = run.model.to_config(64, run.tasks)
    extractor = build_extractor(run, config, {task.name: [Sounds()] for task in run.tasks})
    waveforms = [extractor(soundfile.read(Sounds().read(row)["audio"].open())[0], 8000)["input_features"] for row in range(6)]
    assert np.mean(waveforms) == pytest.approx(0, abs=1e-3) and np.std(waveforms) == pytest.approx(1, abs=1e-3)
    # the loudest are 20 dB apart: alike only where loudness does not count
    assert (abs(np.mean(waveforms[5]) - np.mean(waveforms[4])) < 0.1) == normalize

    processor = ImpProcessor(ImpImageProcessor(), ImpVideoProcessor(), extractor, train_tokenizer(["noise"], 16))
    processor.save_pretrained(tmp_path)
    later = get_recipe("real_small")
    later.train.init_from = str(tmp_path)
    assert build_extractor(later, config, {}).to_dict() == extractor.to_dict()
