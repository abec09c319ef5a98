"""A GPU that is lost ends the process's run; one that has too little memory does not. Neither changes a row."""

from __future__ import annotations

import logging

import pytest
import torch
from pipeline.tiny_job import config_for, rows, write_photos

from data_engine.cli import main
from data_engine.dataset.commits import read_commits
from data_engine.errors import DeviceLost
from data_engine.pipeline.job import generate
from data_engine.sam.device_errors import loses_device
from data_engine.sam.segmenter import SamSegmenter

COUNT = 10
ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later"
ASSERT = "CUDA error: device-side assert triggered"
ECC = "CUDA error: uncorrectable ECC error encountered"
LAUNCH = "CUDA error: unspecified launch failure"


@pytest.fixture
def photos(tmp_path):
    return str(write_photos(tmp_path / "photos", COUNT))


@pytest.fixture
def encoding(monkeypatch):
    """Has `fault(n)` called before the n-th image is encoded. What it raises, the model raises."""
    real = SamSegmenter.encode

    def install(fault):
        seen = []

        def encode(self, views):
            seen.append(1)
            fault(len(seen))
            return real(self, views)

        monkeypatch.setattr(SamSegmenter, "encode", encode)
        return seen

    return install


def failing_from(n, error):
    """A dead context: from the n-th image on, everything fails."""

    def fault(image):
        if image >= n:
            raise error

    return fault


@pytest.mark.parametrize(
    "error",
    [RuntimeError(ILLEGAL), torch.AcceleratorError(ASSERT), RuntimeError(ECC), torch.AcceleratorError(LAUNCH)],
    ids=lambda error: str(error)[12:30],
)
@pytest.mark.parametrize("n", [1, 4, 6])
def test_rows_before_are_committed_and_nothing_after(tiny_model, photos, tmp_path, encoding, n, error):
    config = config_for(tiny_model, "output.images_per_commit=3")
    seen = encoding(failing_from(n, error))
    with pytest.raises(DeviceLost) as caught:
        generate(photos, str(tmp_path / "out"), config)
    text = str(caught.value)
    assert f"{n - 1:03d}.jpg" in text
    assert str(error).splitlines()[0] in text
    assert "\n" not in text
    assert "Run the same command again; if it comes back, the GPU needs a reset" in text
    assert len(seen) == n  # nothing was tried on a dead device
    assert sum(record.totals.images for record in read_commits(str(tmp_path / "out"))) == n - 1

    encoding(lambda image: None)
    assert generate(photos, str(tmp_path / "out"), config).exit_code == 0
    generate(photos, str(tmp_path / "whole"), config)
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


def test_the_command_ends_with_one_line(tiny_model, photos, tmp_path, encoding, monkeypatch, capsys):
    encoding(failing_from(3, RuntimeError(ILLEGAL)))
    command = ["generate", photos, str(tmp_path / "out"), "--model", str(tiny_model), "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["data-engine", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if "error" in line] == [
        "error: cpu was lost at image 002.jpg (RuntimeError: CUDA error: an illegal memory access was encountered); "
        "what was masked before is committed. Run the same command again; if it comes back, the GPU needs a reset"
    ]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: invalid configuration argument"),  # one launch that was refused
        torch.AcceleratorError("CUDA error: too many resources requested for launch"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("CUDA"),
    ],
    ids=str,
)
def test_an_error_that_spares_the_device_is_one_failed_row(tiny_model, photos, tmp_path, encoding, error):
    def fault(image):
        if image == 4:
            raise error

    encoding(fault)
    report = generate(photos, str(tmp_path / "out"), config_for(tiny_model))
    assert (report.totals.images, report.totals.errors) == (COUNT, {"internal_error": 1})


def test_whether_the_device_answers_decides_where_the_text_does_not(monkeypatch):
    """cuDNN and others word the first error of a dead context in their own way."""
    cuda, error = torch.device("cuda:0"), RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")
    refused = RuntimeError("CUDA error: invalid argument")

    def dead(device):
        raise torch.AcceleratorError(ILLEGAL)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert not loses_device(error, cuda)
    assert not loses_device(refused, cuda)
    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    assert loses_device(error, cuda)
    assert loses_device(refused, cuda)
    assert not loses_device(torch.OutOfMemoryError("CUDA out of memory"), cuda)
    assert not loses_device(error, torch.device("cpu"))


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:24])
def test_out_of_memory_is_worked_around(tiny_model, photos, tmp_path, monkeypatch, caplog, error):
    config = config_for(tiny_model)
    generate(photos, str(tmp_path / "whole"), config)
    real, sizes = SamSegmenter.decode, []

    def decode(self, *args, points, **prompts):
        sizes.append(len(points))
        if len(points) > 5:
            raise error
        return real(self, *args, points=points, **prompts)

    monkeypatch.setattr(SamSegmenter, "decode", decode)
    with caplog.at_level(logging.WARNING, "data_engine"):
        report = generate(photos, str(tmp_path / "out"), config)
    assert report.totals.failed == 0
    assert sizes[:3] == [16, 8, 4]
    assert set(sizes[3:]) == {4}  # remembered, for all images
    assert [m for m in caplog.messages if "memory" in m] == [
        "out of memory with 16 prompts at a time: going on with 8",
        "out of memory with 8 prompts at a time: going on with 4",
    ]
    same, other = rows(tmp_path / "out"), rows(tmp_path / "whole")
    assert same[0] == other[0]
    assert same[1] == other[1]


def test_an_image_that_never_fits_is_one_failed_row(tiny_model, photos, tmp_path, encoding):
    def fault(image):
        if image in (4, 5):  # the second try of the fourth image
            raise OUT_OF_MEMORY[0]

    encoding(fault)
    report = generate(photos, str(tmp_path / "out"), config_for(tiny_model))
    assert (report.totals.images, report.totals.errors) == (COUNT, {"out_of_memory": 1})


def test_an_encoder_that_fits_once_the_cache_is_emptied_goes_on(tiny_model, photos, tmp_path, encoding, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))

    def fault(image):
        if image == 4 and not emptied:
            raise OUT_OF_MEMORY[0]

    encoding(fault)
    report = generate(photos, str(tmp_path / "out"), config_for(tiny_model))
    assert (report.totals.images, report.totals.failed, emptied) == (COUNT, 0, [1])
