"""The local engine: what is left of a job, shard after shard, in this process."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import closing

from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import StorageError
from data_engine.masks.generator import MaskGenerator
from data_engine.pipeline.died_at import Verdict, verdict
from data_engine.pipeline.events import ShardFailed, SliceLost
from data_engine.pipeline.in_flight import Machine, kept_in_flight, notes_folder
from data_engine.pipeline.job import Job
from data_engine.pipeline.local_outage import LocalOutage
from data_engine.pipeline.plan import remaining
from data_engine.pipeline.shard_runner import ShardRunner
from data_engine.pipeline.shard_work import ShardWork
from data_engine.pipeline.trial import try_out
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
    folder = notes_folder(job.output, job.plan.fingerprint)
    found = verdict(folder, remaining(job.plan, commits), Machine.now())
    if found.suspects or found.condemned:
        job.progress.note(
            f"earlier runs ended with their process: {found.condemned:,} images that they all ended at are left out, "
            f"{found.suspects:,} more that were in flight are worked on alone"
        )
        try_out(generator)
    with kept_in_flight(folder, job.run_id, config.run.decode_threads + 3) as in_flight:

        def stopping() -> bool:
            asked = job.stopping()
            if asked:
                in_flight.told_to_stop()
            return asked

        runner = ShardRunner(job.output, job.plan, config, generator, stopping, in_flight=in_flight)
        commits = _run(job, commits, runner, found)
    verdict(folder, remaining(job.plan, commits), Machine.now())  # removes what is of no use any more


def _run(job: Job, commits: list[CommitRecord], runner: ShardRunner, found: Verdict) -> list[CommitRecord]:
    """The commits that it knows of in the end."""
    shards = {planned.id: planned for planned in job.plan.shards}
    unreadable: set[str] = set()
    shared = False  # another process commits to this output as well
    outage = LocalOutage(job)
    while not job.stopping():
        todo = {key: start for key, start in remaining(job.plan, commits).items() if key not in unreadable}
        if not todo:
            break
        order = list(todo)
        if shared:
            random.shuffle(order)  # two drivers that meet should part
        queue = deque(sorted(order, key=outage.failures_of))  # lest what cannot be read keep the others waiting

        def work(queue: deque[str] = queue, todo: dict = todo, commits: list = commits) -> Iterator[ShardWork]:
            while queue and not outage.pauses():
                key = queue.popleft()
                seen = _seen_ids(job.output, key, todo[key].image, commits) if shards[key].shard.kind == "tar" else ()
                alone, left_out = found.alone.get(key, ()), found.left_out.get(key, {})
                yield ShardWork(shards[key], todo[key], seen, alone=alone, left_out=left_out)

        try:
            with closing(runner.run(work())) as events:
                for event in events:
                    job.run_log.sample()
                    if isinstance(event, ShardFailed) and outage.waits_for(event):
                        continue
                    job.event(event)
                    outage.heard(event)
                    if isinstance(event, SliceLost):
                        shared = True
                    elif isinstance(event, ShardFailed):
                        unreadable.add(event.shard)
                        job.shard_failed(event)
            commits = job.commits()
        except StorageError as error:
            if not outage.waits_for_output(error):
                raise
            commits = list(job.known.values())  # as far as this run knows; what others have committed shows in time
        outage.wait()
    return commits


def _seen_ids(output: str, shard: str, image: int, commits: list[CommitRecord]) -> set[str]:
    """Ids of a tar's committed images: its reader needs them to name duplicates as an unbroken run would."""
    if not image:
        return set()
    dataset = MaskDataset(output)
    mine = [record for record in commits if record.shard == shard]
    return {image_id for record in mine for image_id in dataset.image_ids(record)}
