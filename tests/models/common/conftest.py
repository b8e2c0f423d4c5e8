"""The marks of transformers' own tests, which `--strict-markers` would refuse."""

MARKS = (
    "accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test", "slow", "order",
    "is_pipeline_test", "is_staging_test", "is_training_test",
)  # fmt: skip


def pytest_configure(config):
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: of transformers' own tests")
