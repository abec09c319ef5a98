"""Two real, small datasets: from a folder with difficult names and a broken file, and from tars with short slices."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline.tiny_job import config_for, picture, save_model, write_tar

from data_engine.pipeline.job import generate

NASTY = "<script>alert(1)<_script> & \"quotes\" 'too'.jpg"


@pytest.fixture(scope="session")
def report_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("report-model") / "tiny.safetensors")


@pytest.fixture(scope="session")
def masks_of_folder(tmp_path_factory: pytest.TempPathFactory, report_model: Path) -> Path:
    """photos/ (three pictures, one file that is none) and masks/ beside it. Tests read, they change nothing."""
    folder = tmp_path_factory.mktemp("report-folder")
    (folder / "photos").mkdir()
    for i, name in enumerate(("a.jpg", "b.jpg", NASTY)):
        (folder / "photos" / name).write_bytes(picture(i, 90, 60))
    (folder / "photos" / "broken<b>.jpg").write_bytes(b"<i>junk</i>")
    generate(str(folder / "photos"), str(folder / "masks"), config_for(report_model))
    return folder


@pytest.fixture(scope="session")
def masks_of_tars(tmp_path_factory: pytest.TempPathFactory, report_model: Path) -> Path:
    """Two tars of five pictures, two of them in both; slices of two."""
    folder = tmp_path_factory.mktemp("report-tars")
    for i in range(2):
        write_tar(folder / f"photos/{i}.tar", 5, first=3 * i)
    generate(str(folder / "photos"), str(folder / "masks"), config_for(report_model, "output.images_per_commit=2"))
    return folder
