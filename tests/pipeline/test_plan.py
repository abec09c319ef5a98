"""The plan: what its fingerprint covers, written once, read back whole, and what is left of it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from pipeline.tiny_job import config_for, write_photos, write_tar

from data_engine.dataset.commits import CommitRecord, Part, Totals
from data_engine.errors import DatasetError, PlanMismatch
from data_engine.pipeline.plan import make_plan, new_inputs, read_plan, remaining, write_plan


@pytest.fixture
def plan(tiny_model, tmp_path):
    photos = write_photos(tmp_path / "photos", 5)
    return make_plan(str(photos), config_for(tiny_model, "input.images_per_shard=2"))


def test_a_plan_reads_back_as_it_was_written(plan, tmp_path):
    assert write_plan(str(tmp_path / "out"), plan) is plan
    assert read_plan(str(tmp_path / "out")) == plan
    assert plan.images == 5
    assert [shard.images for shard in plan.shards] == [2, 2, 1]


def test_no_plan_is_none(tmp_path):
    assert read_plan(str(tmp_path)) is None


def test_the_second_writer_gets_the_plan_that_stands(plan, tmp_path):
    write_plan(str(tmp_path / "out"), plan)
    again = dataclasses.replace(plan)
    assert write_plan(str(tmp_path / "out"), again) == plan
    other = dataclasses.replace(plan, limit=3)
    with pytest.raises(PlanMismatch, match="limit: null -> 3"):
        write_plan(str(tmp_path / "out"), other)


def test_the_fingerprint_changes_with_everything_that_decides_the_content(plan):
    shard = plan.shards[0]
    changed = [
        dataclasses.replace(plan, input="elsewhere"),
        dataclasses.replace(plan, limit=3),
        dataclasses.replace(plan, model_sha256="0" * 64),
        dataclasses.replace(plan, config={**plan.config, "masks": {**plan.config["masks"], "points_per_side": 9}}),
        dataclasses.replace(plan, shards=plan.shards[1:]),
        dataclasses.replace(plan, shards=(dataclasses.replace(shard, take=1), *plan.shards[1:])),
        dataclasses.replace(
            plan,
            shards=(
                dataclasses.replace(shard, shard=dataclasses.replace(shard.shard, etag="other")),
                *plan.shards[1:],
            ),
        ),
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in changed)}) == len(changed) + 1


def test_the_name_of_a_model_is_not_its_identity(plan):
    assert dataclasses.replace(plan, model_name="other.pth").fingerprint == plan.fingerprint


def test_a_shard_table_that_changed_is_refused(plan, tmp_path):
    write_plan(str(tmp_path / "out"), plan)
    table = next((tmp_path / "out/_plan").glob("shards-*.parquet"))
    data = bytearray(table.read_bytes())
    data[50] ^= 1
    table.write_bytes(data)
    with pytest.raises(DatasetError, match=r"shards-.*is damaged"):
        read_plan(str(tmp_path / "out"))


def record(shard: str, index: int, first: int, images: int, final: bool) -> CommitRecord:
    part = Part(file="x", size=0, sha256="", rows=0)
    return CommitRecord(
        fingerprint="",
        shard=shard,
        slice=index,
        first_image=first,
        final=final,
        images=part,
        masks=part,
        totals=Totals(images=images),
        owner="",
        attempt="",
        next_offset=100 * index,
    )


def test_remaining_goes_on_after_the_last_commit(plan):
    first, second, third = (shard.id for shard in plan.shards)
    commits = [record(first, 0, 0, 2, True), record(second, 0, 0, 1, False)]
    left = remaining(plan, commits)
    assert list(left) == [second, third]
    assert (left[second].slice, left[second].image, left[second].offset) == (1, 1, 0)
    assert (left[third].slice, left[third].image, left[third].offset) == (0, 0, None)


def test_a_grown_input_adds_shards_and_renumbers_none(tiny_model, tmp_path):
    config = config_for(tiny_model)
    write_tar(tmp_path / "in" / "b.tar", 1)
    before = make_plan(str(tmp_path / "in"), config)
    write_tar(tmp_path / "in" / "a.tar", 1)
    after = make_plan(str(tmp_path / "in"), config)
    assert {shard.id for shard in before.shards} < {shard.id for shard in after.shards}
    assert new_inputs(before, after) == 1
    assert new_inputs(before, before) == 0


@pytest.mark.parametrize("content", ["[]", "{}", "1", "null", '"x"', "{", '{"schema_version": 1}'])
def test_a_plan_that_is_none_is_damage(tmp_path, content):
    (tmp_path / "_plan").mkdir()
    (tmp_path / "_plan/job.json").write_text(content)
    with pytest.raises(DatasetError, match="damaged"):
        read_plan(str(tmp_path))


@pytest.mark.parametrize("missing", ["fingerprint", "config", "skipped", "shards"])
def test_a_plan_that_lacks_something_is_damage(plan, tmp_path, missing):
    write_plan(str(tmp_path / "out"), plan)
    path = tmp_path / "out/_plan/job.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != missing}))
    with pytest.raises(DatasetError, match="damaged"):
        read_plan(str(tmp_path / "out"))
