"""The digits corpus: handwritten digits as images and videos, spoken digits, and captions; made in under a minute, offline."""

from imp_ds.data.digits.corpus import build
from imp_ds.data.digits.manifest import verify

__all__ = ["build", "verify"]
