"""The digits corpus: handwritten digits as images and videos, spoken digits, and captions; made in under a minute, offline."""

from imp_ds.data.digits.corpus import DIGITS, build

verify = DIGITS.verify

__all__ = ["build", "verify"]
