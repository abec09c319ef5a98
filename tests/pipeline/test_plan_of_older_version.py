"""Datasets that were begun before a setting existed go on; so do those whose plan names its default."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from pipeline.tiny_job import config_for, rows, write_photos

from data_engine.config import load_config
from data_engine.errors import PlanMismatch
from data_engine.pipeline.job import generate
from data_engine.pipeline.plan import make_plan, write_plan

LATER = {"suppression": "box", "adaptive_points": False, "adaptive_step": 2}


@pytest.mark.parametrize(
    ("preset", "digest"),
    [
        ("reference", "22611bcf0c1045e5bea8e1a67e453ee536c0cf997fad5a5a25ab4e78ffb92aa6"),
        ("sa1b", "55ca91d7f1401a9e81305e80d3b71f2ba3ca70665742875e2ece19c0f05b34fb"),
        ("quickstart", "a9a29007f6fb6d93396d8b1a10c62c8c6ce7fdfd316f2030a644bf3d4ef0e889"),
    ],
)
def test_what_a_fingerprint_is_made_of_has_not_changed(preset: str, digest: str) -> None:
    """The digests were taken before any of the later settings existed (commit c9d7b28~1)."""
    content = json.dumps(load_config(preset).content(), sort_keys=True)
    assert hashlib.sha256(content.encode()).hexdigest() == digest


def test_a_plan_without_later_settings_is_resumed(tiny_model: Path, tmp_path: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", 2), tmp_path / "out"
    plan = make_plan(str(photos), config_for(tiny_model))
    assert not LATER.keys() & plan.config["masks"].keys()
    write_plan(str(output), plan)
    explicit = config_for(tiny_model, "masks.suppression=box", "model.compiled=false", "output.keep_rejects=0")
    assert generate(str(photos), str(output), explicit).complete
    for other, message in (
        ("masks.suppression=mask", r'masks\.suppression: "box" -> "mask"'),
        ("output.keep_rejects=0.5", r"output\.keep_rejects: 0\.0 -> 0\.5"),
    ):
        with pytest.raises(PlanMismatch, match=message):
            generate(str(photos), str(output), config_for(tiny_model, other))


def test_a_plan_that_names_their_defaults_is_resumed(tiny_model: Path, tmp_path: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", 2), tmp_path / "out"
    plan = make_plan(str(photos), config_for(tiny_model))
    named = replace(plan, config={**plan.config, "masks": {**plan.config["masks"], **LATER}})
    assert named.fingerprint != plan.fingerprint
    write_plan(str(output), named)
    report = generate(str(photos), str(output), config_for(tiny_model))
    assert (report.complete, report.plan.fingerprint) == (True, named.fingerprint)
    generate(str(photos), str(tmp_path / "new"), config_for(tiny_model))
    assert rows(output) == rows(tmp_path / "new")
