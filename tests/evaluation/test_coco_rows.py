"""COCO's JSON in pieces: whatever its rows hold and however it is written, as `json.loads` reads it as a whole."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_engine.errors import SourceError
from data_engine.evaluation import coco_rows
from data_engine.evaluation.coco_rows import read_rows
from data_engine.evaluation.coco_truth import coco_truth

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ROWS = st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=5)


def rows_of(path: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {"images": [], "annotations": []}
    texts: list[tuple[Any, str]] = []

    def taker(key: str) -> coco_rows.Taker:
        return lambda row, text: (found[key].append(row), texts.append((row, text)))

    read_rows(str(path), {key: taker(key) for key in found})
    assert all(json.loads(text) == row for row, text in texts)
    return found


@given(
    images=ROWS,
    annotations=ROWS,
    others=st.dictionaries(st.text().filter(lambda key: key not in ("images", "annotations")), VALUES, max_size=3),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    piece=st.integers(1, 60),
    annotations_first=st.booleans(),
    packed=st.booleans(),
)
def test_any_rows_in_any_pieces(
    tmp_path_factory, images, annotations, others, indent, ascii_only, piece, annotations_first, packed
):
    lists = [("images", images), ("annotations", annotations)]
    content = dict([*others.items(), *(reversed(lists) if annotations_first else lists)])
    path = tmp_path_factory.mktemp("rows") / "any.json"
    data = json.dumps(content, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:  # of a lone surrogate
        data = json.dumps(content, indent=indent).encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_rows, "_PIECE", piece)
        assert rows_of(path) == {"images": images, "annotations": annotations}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON (Expecting value at character 0)"),
        ('{"images": [], "annotations": [{"id": 1} {"id": 2}]}', "expecting ',' or ']' at character 41"),
        ('{"images": [], "annotations": []} x', "extra data at character 34"),
        ('{"images": [], "annotations": [', "is not JSON (Expecting value at character 31)"),
        ('{"images": [], "annotations" []}', "expecting ':' at character 29"),
        ('{"images": [], "annotations": [1]}', "it needs the lists `images` and `annotations`"),
        ('{"images": {}, "annotations": []}', "it needs the lists"),
        ('{"images": []}', "it needs the lists"),
        ("null", "it needs the lists"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, text, said):
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(SourceError) as caught:
        rows_of(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_was_cut_or_packed_in_another_way_is_named(tmp_path):
    path = tmp_path / "instances.json.gz"
    path.write_bytes(gzip.compress(b'{"images": [], "annotations": []}')[:-12])
    with pytest.raises(SourceError, match=r"instances.json.gz cannot be unpacked \(.*\); fetch it again"):
        rows_of(path)
    path.write_bytes(b"BZh91AY&SY\xff\xfe")
    with pytest.raises(SourceError, match=r"instances.json.gz is not JSON"):
        rows_of(path)
    with pytest.raises(SourceError, match=r"cannot be read: there is no such file"):
        rows_of(tmp_path / "nowhere.json")


def test_images_and_annotations_without_an_id_that_can_be_one_are_named(tmp_path):
    path = tmp_path / "instances.json"
    image = {"id": [1], "file_name": "a.png", "height": 4, "width": 4}
    path.write_text(json.dumps({"images": [image], "annotations": []}))
    with pytest.raises(SourceError, match=r"image \[1\] lacks file_name, height, width or id"):
        coco_truth(str(tmp_path), str(path))
    path.write_text(json.dumps({"images": [], "annotations": [{"id": 3, "image_id": {}}]}))
    with pytest.raises(SourceError, match=r"annotation 3 is of image \{\}, which is no id"):
        coco_truth(str(tmp_path), str(path))


def test_outlines_take_no_more_memory_than_their_text(tmp_path):
    """Half a million numbers: as Python's floats in lists they would take five times their text."""
    polygon = [round(number * 0.37 % 480, 2) for number in range(400)]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in range(250)]
    annotations = [{"id": i, "image_id": i % 250, "segmentation": [polygon], "bbox": [0, 0, 9, 9]} for i in range(1250)]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    for image in images:
        (tmp_path / image["file_name"]).touch()
    tracemalloc.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_rows, "_PIECE", 1 << 14)
        truth = coco_truth(str(tmp_path), str(path))
        held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = path.stat().st_size
    assert len(truth.entries) == 250
    assert held < 1.3 * size
    assert most < 1.3 * size + (3 << 20)  # and what is in passing: a block of the file
