"""What is particular to each modality. Adding one is a file here and its line below."""

from typing import Literal

from imp_ds.modalities import audio, text, vision

Modality = Literal["vision", "audio", "text"]

# name -> (embedding class, names of the model inputs it takes)
EMBEDDINGS = {
    "vision": (vision.VisionEmbedding, vision.INPUT_NAMES),
    "audio": (audio.AudioEmbedding, audio.INPUT_NAMES),
    "text": (text.TextEmbedding, text.INPUT_NAMES),
}
