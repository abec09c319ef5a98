"""Scaling over workers, on a Ray of this machine: every number of workers masks all images, too few shards are said."""

from __future__ import annotations

import pytest
from pipeline.tiny_job import config_for, save_model, write_photos

from data_engine.dataset.reader import MaskDataset
from data_engine.errors import UsageError
from data_engine.pipeline.scaling import measure_scaling

pytest.importorskip("ray")


@pytest.mark.timeout(200)
def test_every_number_of_workers_masks_all_images(tmp_path):
    import ray

    photos = write_photos(tmp_path / "photos", 12)
    overrides = ("input.images_per_shard=3", "run.ray.cpus_per_worker=0.5", "run.decode_threads=1")
    config = config_for(save_model(tmp_path / "tiny.safetensors"), *overrides)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        points = list(measure_scaling(str(photos), str(tmp_path / "scratch"), config, [2, 1], 12))
        with pytest.raises(UsageError, match="too few for 5 workers"):
            list(measure_scaling(str(photos), str(tmp_path / "scratch"), config, [5], 12))
    finally:
        ray.shutdown()
    assert [(point.workers, point.images) for point in points] == [(1, 12), (2, 12)]
    assert points[0].efficiency == 1
    assert all(point.images_per_second > 0 and point.efficiency > 0 for point in points)
    assert all(len(MaskDataset(folder)) == 12 for folder in (tmp_path / "scratch").glob("workers-[12]-*"))
