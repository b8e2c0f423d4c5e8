"""The corpus talk: conversations about the digits, in writing and in speech; made in under three minutes, offline."""

from imp_ds.data.talk.corpus import NAMES, TALK, build, splits_of

verify = TALK.verify

__all__ = ["NAMES", "build", "splits_of", "verify"]
