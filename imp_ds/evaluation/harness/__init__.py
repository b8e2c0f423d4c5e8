"""Exported models in the harness mteb: the adapter, and tasks of one's own data.

mteb is no requirement of imp_ds: `pip install "imp_ds[eval]"`. It is imported when it is first needed.
"""

from imp_ds.evaluation.harness.model_meta import folder_hash
from imp_ds.evaluation.harness.mteb_model import INSTALL, MtebModel

__all__ = ["INSTALL", "MtebModel", "folder_hash"]
