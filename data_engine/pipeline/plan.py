"""What is to be done, decided once: the job's settings, the model and the ordered list of shards.

`_plan/job.json` is put if absent, and names the shard table by its content. Whoever comes later, to resume or beside a
running job, takes the plan that is there, or is told which settings differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import islice
from typing import Any

from data_engine import __version__
from data_engine.config import JobConfig, differences
from data_engine.dataset.commits import PLAN_FILE, CommitRecord
from data_engine.dataset.schema import SCHEMA_VERSION, check_version
from data_engine.errors import DatasetError, PlanMismatch, SourceError
from data_engine.images.settings import InputSettings
from data_engine.images.shard import Shard
from data_engine.images.sources import list_shards, read_shard
from data_engine.pipeline.commit import new_owner, put, put_if_absent
from data_engine.pipeline.shard_table import from_parquet, to_parquet
from data_engine.signed_urls import unsigned
from data_engine.storage import is_local, join, local_path, read_bytes, refuse_unless_text


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """A shard, and how many of its images belong to the job (all, unless a limit cuts it)."""

    shard: Shard
    take: int | None = None

    @property
    def id(self) -> str:
        return self.shard.id

    @property
    def images(self) -> int | None:
        """How many images it holds, if that is known before it is read."""
        return self.take if self.take is not None else self.shard.images


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """A job, frozen."""

    input: str
    limit: int | None
    config: dict[str, Any]  # the settings that decide the content
    model_name: str
    model_sha256: str
    shards: tuple[PlannedShard, ...]
    warnings: tuple[str, ...] = ()
    skipped: dict[str, int]  # what lay in the input and is no image, by reason
    replayed_from: dict[str, Any] | None = None  # of a replay: the dataset whose candidates were filtered anew

    @property
    def fingerprint(self) -> str:
        """Changes with anything that decides the content: settings, model, input."""
        shards = [[s.id, s.shard.size, s.shard.etag, s.take] for s in self.shards]
        identity = [SCHEMA_VERSION.split(".")[0], *self._identity().values(), shards]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    @property
    def images(self) -> int | None:
        """Images in the job, if that is known before they are read."""
        counts = [shard.images for shard in self.shards]
        return sum(counts) if None not in counts else None  # type: ignore[arg-type]

    @property
    def lacks_links(self) -> bool:
        """Whether its input takes signed links that are not at hand, as after reading a plan back."""
        return any("" in (s.shard.link, *(file.link for file in s.shard.files)) for s in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.shard.size or 0 for shard in self.shards)

    @property
    def images_per_commit(self) -> int:
        return int(self.config["output"]["images_per_commit"])

    def metadata(self) -> dict[str, Any]:
        """What every file of the dataset says of its origin."""
        return {
            "fingerprint": self.fingerprint,
            "code_version": __version__,
            "model": {"name": self.model_name, "sha256": self.model_sha256},
            "config": self.config,
        }

    def _identity(self) -> dict[str, Any]:
        """What must be equal for two plans to be the same job. A model is its weights, not the name of a file."""
        settings = {**self.config, "model": {**self.config["model"], "name": None, "sha256": self.model_sha256}}
        identity = {"settings": settings, "input": self.input, "limit": self.limit}
        return identity if self.replayed_from is None else {**identity, "replayed_from": self.replayed_from}

    def refuse_unless_same(self, other: JobPlan, root: str) -> None:
        """Raises PlanMismatch naming what differs between this plan, found at `root`, and the one asked for."""
        different = differences(self._identity(), other._identity())
        if different:
            listed = "; ".join(line.removeprefix("settings.") for line in different)
            raise PlanMismatch(
                f"{root} belongs to a job with other settings ({listed}). "
                "Use the same settings to resume it, or another output for a new job"
            )


def make_plan(input_uri: str, config: JobConfig, limit: int | None = None) -> JobPlan:
    """Lists the input and freezes the job. Reads, writes nothing. Raises SourceError, CheckpointError, UsageError.

    Signed links stay in its shards, in memory: what is written and compared knows them without their secrets.
    """
    refuse_unless_text(input_uri)
    listing = list_shards(input_uri, config.input)
    shards: Iterable[PlannedShard] = [PlannedShard(shard) for shard in listing.shards]
    if limit is not None:
        shards = _first_images(shards, limit, config.input)
    return replace(
        plan_without_shards(input_uri, config, limit),
        shards=tuple(shards),
        warnings=tuple(listing.warnings),
        skipped=dict(listing.skipped),
    )


def plan_without_shards(input_uri: str, config: JobConfig, limit: int | None = None) -> JobPlan:
    """What tells one job from another, as far as that is known without a look at the input. Raises CheckpointError."""
    from data_engine.sam.checkpoints import identify  # brings torch, which reading a plan does without

    model_name = unsigned(config.model.name)
    content = config.content()
    return JobPlan(
        input=input_name(input_uri),
        limit=limit,
        config={**content, "model": {**content["model"], "name": model_name}},
        model_name=model_name,
        model_sha256=identify(config.model.name),
        shards=(),
        skipped={},
    )


def input_name(input_uri: str) -> str:
    """An input as its plan names it: the same from every folder, and without the secrets of a signed link."""
    return str(local_path(input_uri)) if is_local(input_uri) else unsigned(input_uri)


def read_job(root: str) -> dict[str, Any] | None:
    """What the plan of a dataset says without its shards, which may be millions; None where there is none.

    Raises DatasetError for what is no plan.
    """
    where = join(root, PLAN_FILE)
    try:
        data = read_bytes(where)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        job: dict[str, Any] = json.loads(data)
        check_version(job["schema_version"], where)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{where} is damaged ({type(error).__name__}: {error})") from None
    return job


def is_of(job: dict[str, Any], plan: JobPlan) -> bool:
    """Whether what `read_job` gave belongs to this very plan, to the last shard."""
    return all(job.get(name) == value for name, value in _without_shards(plan).items())


def read_plan(root: str) -> JobPlan | None:
    """The plan of a dataset, or None where there is none. Raises DatasetError for a damaged one.

    Where the input takes signed links, they are missing: `with_links` puts them in.
    """
    where = join(root, PLAN_FILE)
    job = read_job(root)
    if job is None:
        return None
    try:
        table = read_bytes(join(root, job["shards"]["file"]))
        if hashlib.sha256(table).hexdigest() != job["shards"]["sha256"]:
            raise DatasetError(f"{join(root, job['shards']['file'])} is damaged: its sha256 is not the one in {where}")
        plan = JobPlan(
            input=job["input"],
            limit=job["limit"],
            config=job["config"],
            model_name=job["model"]["name"],
            model_sha256=job["model"]["sha256"],
            shards=tuple(PlannedShard(shard, take) for shard, take in from_parquet(table)),
            warnings=tuple(job["warnings"]),
            skipped=job["skipped"],
            replayed_from=job.get("replayed_from"),
        )
        fingerprint = (plan.fingerprint, job["fingerprint"])
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
        raise DatasetError(f"{where} is damaged ({type(error).__name__}: {error})") from None
    if fingerprint[0] != fingerprint[1]:
        raise DatasetError(f"{where} is damaged: its content does not have the fingerprint it names")
    return plan


def write_plan(root: str, plan: JobPlan, single_writer: bool = False) -> JobPlan:
    """Makes `plan` the plan of the dataset at `root` unless another process was faster; returns what stands."""
    data = to_parquet((planned.shard, planned.take) for planned in plan.shards)
    digest = hashlib.sha256(data).hexdigest()
    file = f"_plan/shards-{digest[:16]}.parquet"
    put(join(root, file), data)
    job = {
        "schema_version": SCHEMA_VERSION,
        **_without_shards(plan),
        "shards": {
            "file": file,
            "sha256": digest,
            "count": len(plan.shards),
            "bytes": plan.bytes,
            "images": plan.images,
        },
        "skipped": plan.skipped,
        "warnings": list(plan.warnings),
        "code_version": __version__,
        "created_at": now(),
        "owner": new_owner(),
        **({} if plan.replayed_from is None else {"replayed_from": plan.replayed_from}),
    }
    if put_if_absent(join(root, PLAN_FILE), (json.dumps(job, indent=1) + "\n").encode(), single_writer):
        return plan
    stands = read_plan(root)
    assert stands is not None, "the plan was there a moment ago"
    stands.refuse_unless_same(plan, root)
    return with_links(stands, plan)


def _without_shards(plan: JobPlan) -> dict[str, Any]:
    return {
        "fingerprint": plan.fingerprint,
        "input": plan.input,
        "limit": plan.limit,
        "model": {"name": plan.model_name, "sha256": plan.model_sha256},
        "config": plan.config,
    }


def with_links(plan: JobPlan, current: JobPlan) -> JobPlan:
    """`plan`, read back, with the signed links that `current` has: the same job's input, listed anew."""
    if not plan.lacks_links:
        return plan
    shard_links = {planned.id: planned.shard.link for planned in current.shards}
    file_links = {(f.image_id, f.uri): f.link for planned in current.shards for f in planned.shard.files}

    def linked(shard: Shard) -> Shard:
        files = tuple(replace(file, link=file_links.get((file.image_id, file.uri), file.link)) for file in shard.files)
        return replace(shard, files=files, link=shard_links.get(shard.id, shard.link))

    return replace(plan, shards=tuple(replace(planned, shard=linked(planned.shard)) for planned in plan.shards))


def new_inputs(plan: JobPlan, current: JobPlan) -> int:
    """How many images (or, where they are not listed, shards) the input has gained since the plan was made."""

    def names(p: JobPlan) -> set[str]:
        return {name for s in p.shards for name in ([file.image_id for file in s.shard.files] or [s.id])}

    return 0 if plan.limit is not None else len(names(current) - names(plan))


@dataclass(frozen=True, slots=True)
class Remaining:
    """Where the work on a shard goes on."""

    slice: int
    image: int
    offset: int | None


def remaining(plan: JobPlan, commits: Iterable[CommitRecord]) -> dict[str, Remaining]:
    """Shards that are not finished, in the plan's order, each with the point to go on from.

    Raises DatasetError when the slices of a shard do not follow each other: images would be lost or doubled.
    """
    slices: dict[str, list[CommitRecord]] = {}
    for record in commits:
        slices.setdefault(record.shard, []).append(record)
    todo = {}
    for planned in plan.shards:
        at = Remaining(0, 0, None)
        finished = False
        for record in sorted(slices.get(planned.id, ()), key=lambda record: record.slice):
            if record.slice != at.slice:
                break  # others commit while the store is listed: one that came late can be missing
            if record.first_image != at.image or finished:
                raise DatasetError(
                    f"shard {planned.id}: slice {record.slice} starts at image {record.first_image}, expected "
                    f"{'nothing' if finished else at.image}. Remove the shard's records in _commits/ from "
                    f"{record.file.rsplit('/', 1)[-1]} on, and the same command makes them again"
                )
            at, finished = after(record), record.final
        if not finished:
            todo[planned.id] = at
    return todo


def after(record: CommitRecord) -> Remaining:
    """Where a shard goes on after a slice."""
    return Remaining(record.slice + 1, record.first_image + record.totals.images, record.next_offset)


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _first_images(shards: Iterable[PlannedShard], limit: int, settings: InputSettings) -> list[PlannedShard]:
    """The shards that hold the first `limit` images, the last one cut. Shards of unknown length are read to count."""
    if limit < 1:
        raise SourceError(f"--limit {limit}: use 1 or more")
    taken = []
    for planned in shards:
        known = planned.shard.images
        count = (
            min(known, limit)
            if known is not None
            else sum(1 for _ in islice(read_shard(planned.shard, settings), limit))
        )
        taken.append(replace(planned, take=count))
        limit -= count
        if not limit:
            break
    return taken
