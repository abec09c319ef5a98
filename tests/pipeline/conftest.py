from __future__ import annotations

from pathlib import Path

import pytest
from pipeline.tiny_job import save_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")
