"""What a tower makes of a medium, in a conversation in place of the medium itself."""

import numpy as np


class MediaFeatures(np.ndarray):
    """Float [N, L, S]: L tokens of width S of each of the N parts that a medium has (chunks of audio; else 1). An array, so that
    processors of transformers hand it on as they do media: `np.asarray(...).view(MediaFeatures)`."""
