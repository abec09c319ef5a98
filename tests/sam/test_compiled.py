"""torch.compile gives the plain networks' answers, and keeps its work in the cache folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from parity.small_sam import SMALL, both
from safetensors.torch import save_file

from data_engine.sam.segmenter import SamSegmenter, load_segmenter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="on a CPU, torch.compile needs a C++ compiler"),
]


def answer(segmenter: SamSegmenter) -> tuple[torch.Tensor, torch.Tensor]:
    image = (torch.arange(90 * 128 * 3) % 251).to(torch.uint8).view(90, 128, 3).numpy()
    embeddings = segmenter.encode([segmenter.prepare(image)])
    points = torch.tensor([[[20.0, 30.0]], [[100.0, 60.0]]])
    decoded = segmenter.decode(embeddings, 0, points=points, labels=torch.ones(2, 1, dtype=torch.int))
    return decoded.iou, decoded.logits(torch.ones(2, 3, dtype=torch.bool))


def test_compiled_networks_answer_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("DATA_ENGINE_CACHE", str(tmp_path / "cache"))
    ours, _ = both(SMALL)
    save_file({name: value.contiguous() for name, value in ours.state_dict().items()}, tmp_path / "small.safetensors")
    plain, compiled = (load_segmenter(tmp_path / "small.safetensors", "cpu", compiled=c) for c in (False, True))
    for mine, expected in zip(answer(compiled), answer(plain), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
    assert any((tmp_path / "cache" / "compiled").iterdir())
