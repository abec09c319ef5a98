"""Settings of a loop: what is wrong is said at once, and overrides reach the command that they are for."""

from __future__ import annotations

import pytest

from data_engine.errors import ConfigError
from data_engine.loop.settings import load_loop_settings
from data_engine.train.data.labelled import DataFilters


def test_the_packaged_settings_are_whole():
    settings = load_loop_settings()
    assert settings.rounds == 2
    assert settings.job("starter").masks.points_per_side == 16
    trainer = settings.trainer("starter")
    assert trainer.model.name == "starter"
    assert trainer.data.filters == settings.filters


def test_overrides_reach_generate_training_and_filters():
    settings = load_loop_settings(
        None,
        [
            "generate.masks.points_per_side=8",
            "generate.run.device=cpu",
            "training.train.steps=7",
            "training.set.train.seed=3",
            "filters.min_area=9",
            "evaluation.limit=4",
            "rounds=5",
        ],
    )
    assert settings.job("starter").masks.points_per_side == 8
    assert settings.job("starter").run.device == "cpu"
    assert (settings.trainer("x").train.steps, settings.trainer("x").train.seed) == (7, 3)
    assert settings.trainer("x").data.filters.min_area == 9
    assert isinstance(settings.filters, DataFilters)
    assert (settings.evaluation.limit, settings.rounds) == (4, 5)


def test_what_decides_the_result_is_its_content():
    base = load_loop_settings().content()
    same = ("rounds=9", "generate.run.device=cpu", "training.run.device=cpu", "datasets=s3://bucket/x")
    other = ("generate.masks.points_per_side=8", "training.train.steps=7", "filters.min_area=9", "mix=scenes:3")
    assert all(load_loop_settings(None, [override]).content() == base for override in same)
    assert all(load_loop_settings(None, [override]).content() != base for override in other)


def test_stages_go_on_with_the_last_one():
    settings = load_loop_settings(None, ["stages=[assisted, automatic]", "people=coco:{round}.json@in"])
    assert [settings.stage(number) for number in (1, 2, 3)] == ["assisted", "automatic", "automatic"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("round=3", "unknown setting 'round'"),
        ("rounds=0", "rounds: Input should be greater"),
        ("stages=[assisted]", "stages with people need `people`"),
        ("filters.min_aria=3", "unknown setting 'filters.min_aria'"),
        ("filters.max_area_fraction=0", "max_area_fraction is 0"),
        ("generate.masks.points=8", "points"),
        ("training.train.stepz=8", "did you mean 'steps'"),
        ("rounds", "write it as section.setting=value"),
    ],
)
def test_wrong_settings_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_loop_settings(None, [override])


def test_a_file_that_is_no_settings(tmp_path):
    (tmp_path / "x.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected settings such as"):
        load_loop_settings(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_loop_settings(tmp_path / "absent.yaml")


def test_a_list_of_settings_is_refused_with_a_sentence(tmp_path):
    path = tmp_path / "loop.yaml"
    path.write_text("training: {set: [train.steps=5]}\n")
    with pytest.raises(ConfigError, match=r"training\.set: .*dictionary"):
        load_loop_settings(path, ["training.train.seed=3"])


def test_all_settings_of_a_command_at_once():
    settings = load_loop_settings(None, ["training.set={train.steps: 5}", "training.train.seed=3"])
    assert (settings.trainer("x").train.steps, settings.trainer("x").train.seed) == (5, 3)


def test_what_is_stored_of_a_loop_has_no_secrets_and_stays_when_a_link_is_signed_anew():
    def content(secret):
        link = f"https://store/it?X-Amz-Expires=60&X-Amz-Signature={secret}"
        return load_loop_settings(None, [f"model={link}", f"mix=sa1b:{link}"]).content()

    assert content("5ec2e7") == content("a6a1n")
    assert "5ec2e7" not in str(content("5ec2e7"))
