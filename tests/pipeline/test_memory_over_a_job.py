"""A job over a thousand photographs of many sizes holds no more memory at its end than near its beginning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from data_engine.config import load_config
from data_engine.pipeline.events import ImageDone
from data_engine.pipeline.job import generate
from data_engine.pipeline.progress import Progress

source, output, photos, count = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
random = np.random.default_rng(0)
pictures = [Image.open(path).convert("RGB") for path in sorted(photos.glob("*.jpg"))]
source.mkdir()
for i in range(count):
    size = tuple(int(side) for side in random.integers(200, 1600, 2))
    pictures[i % len(pictures)].resize(size).save(source / f"{i:04d}.jpg", quality=80)
del pictures

class Watch(Progress):
    done = 0
    held = []

    def event(self, event):
        super().event(event)
        if isinstance(event, ImageDone):
            self.done += 1
            if self.done % (count // 10) == 0:
                self.held.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20)

watch = Watch(None)
overrides = ["run.device=cpu", "masks.points_per_side=8", "output.images_per_commit=50"]
report = generate(str(source), output, load_config("quickstart", overrides), progress=watch)
assert report.complete and report.totals.images == count and not report.totals.failed
print(" ".join(f"{held:.0f}" for held in watch.held))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_is_flat_over_a_thousand_images(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), str(PHOTOS), "1000"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    held = [float(value) for value in done.stdout.split()]
    print("MiB after each hundred images:", held)
    assert len(held) == 10
    assert max(held[5:]) < 1.1 * max(held[1:5]) + 50
