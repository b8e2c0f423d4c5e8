"""Packages of the wheel: those below imp_ds, and the folder ds_configs/ as imp_ds/ds_configs. All else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["imp_ds", "imp_ds.*"]), "imp_ds.ds_configs"],
    package_dir={"imp_ds.ds_configs": "ds_configs"},
    package_data={"imp_ds.ds_configs": ["*.json"]},
)
