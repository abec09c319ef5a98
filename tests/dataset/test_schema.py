"""The tables are a contract: names, types and order do not change within a major version."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset.small_dataset import build

from data_engine.dataset.schema import IMAGES, MASKS, check_version, read_metadata
from data_engine.errors import DatasetError


def test_columns_of_the_masks_table():
    assert {field.name: str(field.type) for field in MASKS} == {
        "image_id": "string",
        "mask_id": "int32",
        **dict.fromkeys(("height", "width", "bbox_x", "bbox_y", "bbox_w", "bbox_h", "area"), "int32"),
        **dict.fromkeys(("predicted_iou", "stability_score", "point_x", "point_y"), "float"),
        **dict.fromkeys(("crop_x", "crop_y", "crop_w", "crop_h"), "int32"),
        "crop_layer": "int8",
        "counts": "string",
        "label": "string",
        "label_score": "float",
    }


def test_columns_of_the_images_table():
    counts = ("masks", "candidates", *(f"rejected_{r}" for r in ("iou", "stability", "edge", "nms", "area")))
    assert {field.name: str(field.type) for field in IMAGES} == {
        **dict.fromkeys(("image_id", "uri", "shard"), "string"),
        "sha256": "fixed_size_binary[32]",
        "phash": "uint64",
        **dict.fromkeys(("width", "height"), "int32"),
        **dict.fromkeys((f"n_{name}" for name in counts), "int32"),
        "status": "dictionary<values=string, indices=int8, ordered=0>",
        **dict.fromkeys(("error_type", "error_message"), "string"),
        **dict.fromkeys(("decode_ms", "generate_ms"), "float"),
    }


def test_files_are_written_for_scans_and_carry_their_origin(tmp_path):
    record = build(tmp_path)[0]
    file = pq.ParquetFile(tmp_path / record.masks.file)
    assert read_metadata(file.schema_arrow, "it")["fingerprint"] == record.fingerprint
    group = file.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert columns["area"].is_stats_set
    assert not columns["counts"].is_stats_set  # 97 % of the bytes: statistics would repeat whole run lengths
    assert columns["image_id"].has_dictionary_page
    assert not columns["counts"].has_dictionary_page
    assert columns["area"].has_offset_index
    assert columns["area"].has_column_index


def test_page_checksums_catch_a_flipped_bit(tmp_path):
    record = build(tmp_path)[0]
    path = tmp_path / record.masks.file
    group = pq.ParquetFile(path).metadata.row_group(0)
    counts = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "counts")
    data = bytearray(path.read_bytes())
    data[counts.data_page_offset + counts.total_compressed_size - 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"[Cc]hecksum|corrupt"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_a_foreign_file_is_refused():
    with pytest.raises(DatasetError, match="was not written by data-engine"):
        read_metadata(pa.schema([("a", pa.int8())]), "x.parquet")


@pytest.mark.parametrize("version", ["", "one", "2.0"])
def test_versions_that_cannot_be_read(version):
    with pytest.raises(DatasetError, match="version"):
        check_version(version, "it")
