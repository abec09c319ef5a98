"""Settings: presets, files, overrides, and errors that name the key, the value and the remedy."""

from __future__ import annotations

import json

import pytest

from data_engine.config import differences, load_config, presets
from data_engine.errors import ConfigError
from data_engine.yaml_settings import parse_yaml


def test_presets_load_and_say_what_they_are_for():
    assert {"quickstart", "reference", "sa1b"} <= set(presets())
    for name, path in presets().items():
        load_config(name)
        assert path.read_text().startswith("# ")


def test_the_reference_preset_is_the_released_defaults():
    from segment_anything_defaults import RELEASED

    masks = load_config("reference").masks
    assert {name: getattr(masks, name) for name in RELEASED} == RELEASED


def test_the_sa1b_preset_is_the_papers_recipe():
    config = load_config("sa1b")
    masks = config.masks
    assert config.model.name == "sam_vit_h"
    assert (masks.points_per_side, masks.crop_n_layers, masks.crop_n_points_downscale_factor) == (32, 2, 2)
    assert (masks.pred_iou_thresh, masks.stability_score_thresh) == (0.88, 0.95)
    assert (masks.box_nms_thresh, masks.crop_nms_thresh) == (0.7, 0.7)
    assert (masks.max_mask_area_fraction, masks.min_mask_region_area, masks.drop_small_masks) == (0.95, 100, True)


def test_overrides_win_over_files_and_files_over_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("masks:\n  points_per_side: 8\n  pred_iou_thresh: 0.5\n")
    config = load_config(file, ["masks.pred_iou_thresh=0.7"])
    assert (config.masks.points_per_side, config.masks.pred_iou_thresh) == (8, 0.7)
    assert config.masks.stability_score_thresh == 0.95


def test_what_show_prints_is_a_file_that_loads_to_the_same(tmp_path):
    config = load_config("sa1b", ["run.decode_threads=3"])
    (tmp_path / "copy.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "copy.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("masks.point_per_side=8", r"masks\.point_per_side.*points_per_side"),
        ("mask.points_per_side=8", r"mask.*masks"),
        ("masks.points_per_side=many", r"masks\.points_per_side.*many"),
        ("masks.points_per_side=0", r"points_per_side"),
        ("masks.crop_n_layers=-1", r"crop_n_layers is -1: use 0"),
        ("model.precision=double", r"model\.precision.*reference"),
        ("run.decode_threads=0", r"run\.decode_threads"),
        ("points_per_side", r"write it as section\.setting=value"),
        ("input.kind=zip", r"input\.kind"),
    ],
)
def test_a_wrong_override_is_explained(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("reference", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("masks: [1, 2]\n", "mine.yaml"),
        ("masks:\n  points_per_side: 8\n  points_per_side: 9\n", "points_per_side"),
        ("masks: {points_per_side: 8\n", "mine.yaml"),
        ("a: &x [1]\nb: *x\n", "mine.yaml"),
        ("!!python/object/apply:os.system ['true']\n", "mine.yaml"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(file)


def test_a_preset_that_does_not_exist_suggests_those_that_do():
    with pytest.raises(ConfigError, match="sa1b"):
        load_config("sa-1b")


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("0.5", 0.5), (".5", 0.5), ("1", 1.0)])
def test_numbers_are_read_as_people_write_them(text, value):
    assert load_config("reference", [f"masks.pred_iou_thresh={text}"]).masks.pred_iou_thresh == value


def test_settings_of_speed_are_not_part_of_the_content():
    one = load_config("reference", ["run.decode_threads=1", "masks.points_per_batch=3", "input.fetch_threads=2"])
    assert differences(one.content(), load_config("reference").content()) == []
    other = load_config("reference", ["masks.pred_iou_thresh=0.1"])
    assert differences(one.content(), other.content()) == ["masks.pred_iou_thresh: 0.88 -> 0.1"]


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"model:\n  name: \xff\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: byte 15 is not UTF-8"):
        load_config(path)


@pytest.mark.parametrize("text", ["{{round}}", "{[a]: 1}", "{!!set {a}: 1}"])
def test_a_key_that_is_no_word_is_explained(text):
    with pytest.raises(ConfigError, match=r"line 1: a list or mapping cannot be a key; quote it"):
        parse_yaml(f"people: {text}", "loop.yaml")


@pytest.mark.parametrize("name", ["pictures/\N{CAMERA WITH FLASH}.pth", "\udcff.pth", "._", "é\\u00e9"])
def test_a_name_survives_an_override_as_json(name):
    assert load_config(None, [f"model.name={json.dumps(name)}"]).model.name == name


def test_a_dot_and_a_line_are_text():
    assert parse_yaml("._", "here") == "._"
    assert [parse_yaml(text, "here") for text in (".5", "5.", "1e-3", "-0.5_0")] == [0.5, 5.0, 0.001, -0.5]
