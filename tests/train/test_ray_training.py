"""Two workers through Ray Train: one model comes out, its gradients are the mean of both, and it goes on."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import load_file
from train.blobs import settings_for, write_id_maps

from data_engine.train.supervised.log_files import read_lines
from data_engine.train.supervised.run import open_sources, train
from data_engine.train.supervised.starting_model import starting_model

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture
def two_cpus():
    import ray

    ray.init(num_cpus=3, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_bell_is_heard_when_it_is_rung_and_a_lost_one_never(two_cpus):
    import ray

    from data_engine.train.supervised.ray_stop import BellHeard, new_bell

    bell, lost = new_bell(), new_bell()
    heard, not_heard = BellHeard(bell), BellHeard(lost)
    assert not heard.asked()
    ray.get(bell.ring.remote())
    until = time.monotonic() + 30
    while not heard.asked() and time.monotonic() < until:
        time.sleep(0.01)
    assert heard.asked()
    ray.kill(lost)
    while not_heard._answer is not None and time.monotonic() < until:
        assert not not_heard.asked()
    assert not_heard._answer is None


def test_two_workers_train_one_model(two_cpus, tmp_path):
    from data_engine.train.supervised.ray_workers import train_on_ray

    data = write_id_maps(tmp_path / "data", 6)
    spec = f"idmaps:{data / 'images'}@{data / 'segments'}"
    # Every image in every step: then two workers with half of them each compute what one with all of them does.
    same = {"steps": 3, "images_per_batch": 1}
    shared = {"data": {"jitter": None, "flip": False}, "prompts": {"corrections": 0, "mask_only_rounds": 0}}
    together = settings_for(train={**same, "accumulate": 3}, **shared)
    weights = load_file(train_on_ray(together, spec, str(tmp_path / "together"), workers=2))
    alone = settings_for(train={**same, "accumulate": 6}, **shared)
    expected = load_file(train(alone, open_sources(spec, alone), tmp_path / "alone", data_name=spec))
    start = starting_model(alone).model.state_dict()
    moved = [torch.cat([(found[name] - start[name]).flatten() for name in start]) for found in (weights, expected)]
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.99
    card = json.loads((tmp_path / "together" / "card.json").read_text())
    assert card["progress"]["images"] == 18
    state = torch.load(tmp_path / "together" / "state.pt", weights_only=True)
    assert len(state["workers"]) == 2
    one, other = (line["loss"] for line in (read_lines(tmp_path / n / "log.jsonl")[0] for n in ("together", "alone")))
    assert one == pytest.approx(other, rel=1e-3)
    again = train_on_ray(together, spec, str(tmp_path / "together"), workers=2)
    assert (tmp_path / "together" / "model.safetensors").samefile(again)
