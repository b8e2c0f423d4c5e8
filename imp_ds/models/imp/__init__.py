"""IMP in the Hugging Face layout. Importing this package makes the Auto classes know its configuration, model and processors."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor

# Not from `transformers` itself, where without torchvision these names stand for an error message
# (AutoImageProcessor up to 5.17 at least, AutoVideoProcessor still in 5.23).
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.modeling_imp import ImpModel
from imp_ds.models.imp.processing_imp import ImpProcessor
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor

AutoConfig.register(ImpConfig.model_type, ImpConfig, exist_ok=True)
AutoModel.register(ImpConfig, ImpModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(ImpConfig, ImpModel, exist_ok=True)
AutoImageProcessor.register(ImpConfig, ImpImageProcessor, exist_ok=True)
AutoVideoProcessor.register(ImpConfig, ImpVideoProcessor, exist_ok=True)
AutoFeatureExtractor.register(ImpConfig, ImpFeatureExtractor, exist_ok=True)
AutoProcessor.register(ImpConfig, ImpProcessor, exist_ok=True)

__all__ = ["ImpConfig", "ImpFeatureExtractor", "ImpImageProcessor", "ImpModel", "ImpProcessor", "ImpVideoProcessor"]
