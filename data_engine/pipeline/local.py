"""The local engine: what is left of a job, shard after shard, in this process."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator

from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.reader import MaskDataset
from data_engine.masks.generator import MaskGenerator
from data_engine.pipeline.events import ShardFailed, SliceLost
from data_engine.pipeline.job import Job
from data_engine.pipeline.plan import remaining
from data_engine.pipeline.shard_runner import ShardRunner, ShardWork
from data_engine.sam.segmenter import load_segmenter
from data_engine.signed_urls import unsigned


def run_here(job: Job, commits: list[CommitRecord]) -> None:
    """Works until nothing is left, or only shards that cannot be read, or the job is told to stop."""
    config = job.config
    job.progress.note(f"loading {unsigned(config.model.name)}")
    segmenter = load_segmenter(
        config.model.name,
        config.run.device,
        config.model.precision,
        expected_sha256=job.plan.model_sha256,
        compiled=config.model.compiled,
    )
    job.progress.note(f"running on {segmenter.device} in {segmenter.precision} precision")
    generator = MaskGenerator(segmenter, config.masks, memory_budget=config.run.mask_memory)
    runner = ShardRunner(job.output, job.plan, config, generator, job.stopping)
    shards = {planned.id: planned for planned in job.plan.shards}
    unreadable: set[str] = set()
    shared = False  # another process commits to this output as well
    while not job.stopping():
        todo = {key: start for key, start in remaining(job.plan, commits).items() if key not in unreadable}
        if not todo:
            return
        order = list(todo)
        if shared:
            random.shuffle(order)  # two drivers that meet should part
        queue = deque(order)

        def work(queue: deque[str] = queue, todo: dict = todo, commits: list = commits) -> Iterator[ShardWork]:
            while queue:
                key = queue.popleft()
                seen = _seen_ids(job.output, key, todo[key].image, commits) if shards[key].shard.kind == "tar" else ()
                yield ShardWork(shards[key], todo[key], seen)

        for event in runner.run(work()):
            job.event(event)
            job.run_log.sample()
            if isinstance(event, SliceLost):
                shared = True
            elif isinstance(event, ShardFailed):
                unreadable.add(event.shard)
                job.shard_failed(event)
        commits = job.commits()


def _seen_ids(output: str, shard: str, image: int, commits: list[CommitRecord]) -> set[str]:
    """Ids of a tar's committed images: its reader needs them to name duplicates as an unbroken run would."""
    if not image:
        return set()
    dataset = MaskDataset(output)
    mine = [record for record in commits if record.shard == shard]
    return {image_id for record in mine for image_id in dataset.image_ids(record)}
