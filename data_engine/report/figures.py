"""Everything that a report says of one dataset, gathered by scans that leave the run lengths alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from data_engine.dataset.duplicates import newest_version
from data_engine.dataset.reader import MaskDataset
from data_engine.pipeline.plan import JobPlan
from data_engine.report.distribution import MEASURES, Distribution, as_json, read_distribution
from data_engine.report.runs import Run, read_runs
from data_engine.report.sheets import Sheet, choose_sheets
from data_engine.report.throughput import Throughput, throughput

if TYPE_CHECKING:
    import duckdb

SCHEMA = "1.0"  # of the JSON
EXAMPLES = 3  # of failed images of a type
_CLUSTERS = 5

# The steps in the order in which the generator takes them.
FUNNEL = (
    ("rejected_iou", "predicted IoU too low"),
    ("rejected_stability", "not stable"),
    ("rejected_edge", "cut off by its crop"),
    ("rejected_area", "too small or too large"),
    ("rejected_nms", "duplicate of a better mask"),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one dataset. What is shown is derived from these, and so is the JSON."""

    root: str
    facts: dict[str, Any]
    totals: dict[str, Any]
    distributions: tuple[Distribution, ...]
    failures: tuple[dict[str, Any], ...]
    runs: tuple[Run, ...]
    throughput: Throughput
    duplicates: dict[str, Any] | None
    sheets: tuple[Sheet, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "dataset": self.root,
            "facts": self.facts,
            "totals": self.totals,
            "distributions": {found.measure.key: as_json(found) for found in self.distributions},
            "funnel": funnel(self.totals),
            "failures": list(self.failures),
            "runs": [run.as_json() for run in self.runs],
            "throughput": self.throughput.as_json(),
            "duplicates": self.duplicates,
            "sheets": {sheet.key: [asdict(pick) for pick in sheet.picks] for sheet in self.sheets},
        }


def gather(
    dataset: MaskDataset,
    plan: JobPlan,
    connection: duckdb.DuckDBPyConnection,
    pictures: int,
    seed: int,
    on_step: Callable[[str], None] = lambda step: None,
) -> Figures:
    """`connection`: of `dataset.duckdb()`. `pictures`: on each contact sheet. `on_step` is told what is read next."""
    on_step("commits and runs")
    runs = tuple(read_runs(dataset.root))
    distributions = []
    for measure in MEASURES:
        on_step(measure.title.lower())
        distributions.append(read_distribution(connection, measure))
    on_step("sizes, failures and duplicates")
    totals = _totals(dataset, connection)
    failures, duplicates = _failures(connection), _duplicates(dataset.root, connection)
    on_step("images for the contact sheets")
    return Figures(
        root=dataset.root,
        facts=_facts(dataset, plan),
        totals=totals,
        distributions=tuple(distributions),
        failures=failures,
        runs=runs,
        throughput=throughput(dataset.commits, runs),
        duplicates=duplicates,
        sheets=tuple(choose_sheets(connection, pictures, seed)) if pictures else (),
    )


def funnel(totals: dict[str, Any]) -> list[dict[str, Any]]:
    """Candidates, what each step rejects and what it leaves, masks."""
    left = totals["candidates"]
    steps = [{"step": "candidates", "rejected": 0, "left": left}]
    for key, label in FUNNEL:
        left -= totals[key]
        steps.append({"step": label, "rejected": totals[key], "left": left})
    return steps


def _facts(dataset: MaskDataset, plan: JobPlan) -> dict[str, Any]:
    written = dataset.plan
    versions = sorted({record.code_version for record in dataset.commits if record.code_version})
    return {
        "complete": dataset.complete,
        "fingerprint": plan.fingerprint,
        "schema_version": written.get("schema_version"),
        "code_versions": versions or [written.get("code_version", "")],
        "input": plan.input,
        "limit": plan.limit,
        "skipped": plan.skipped,
        "warnings": list(plan.warnings),
        "model": plan.model_name,
        "model_sha256": plan.model_sha256,
        "planned_at": written.get("created_at", ""),
        "completed_at": dataset.manifest.created_at if dataset.manifest else "",
        "made_from": plan.replayed_from,
        "config": plan.config,
    }


def _totals(dataset: MaskDataset, connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    counts = {name: value for name, value in asdict(dataset.totals).items() if name != "errors"}
    without, pixels = connection.execute(
        "select count(*) filter (status = 'ok' and n_masks = 0), "
        "coalesce(sum(width::bigint * height) filter (status = 'ok'), 0) from images"
    ).fetchall()[0]
    small, medium = connection.execute(
        "select count(*) filter (area < 1024), count(*) filter (area >= 1024 and area < 9216) from masks"
    ).fetchall()[0]
    records = dataset.commits
    return {
        **counts,
        "images_without_masks": without,
        "pixels": int(pixels),
        "masks_small": small,  # COCO's sizes: below 32², 96² pixels, and above
        "masks_medium": medium,
        "masks_large": counts["masks"] - small - medium,
        "shards": len({record.shard for record in records}),
        "commits": len(records),
        "damaged_shards": len({record.shard for record in records if record.damage}),
        "bytes_images": sum(record.images.size for record in records),
        "bytes_masks": sum(record.masks.size for record in records),
    }


def _failures(connection: duckdb.DuckDBPyConnection) -> tuple[dict[str, Any], ...]:
    rows = connection.execute(
        "select error_type, count(*) n, "
        "arg_min({'image_id': image_id, 'uri': uri, 'message': error_message}, image_id, $examples) "
        "from images where status = 'failed' group by error_type order by n desc, error_type",
        {"examples": EXAMPLES},
    ).fetchall()
    return tuple({"type": kind, "images": count, "examples": examples} for kind, count, examples in rows)


def _duplicates(root: str, connection: duckdb.DuckDBPyConnection) -> dict[str, Any] | None:
    """None where duplicates have not been looked for."""
    version = newest_version(root)
    if version is None:
        return None
    reasons = connection.execute(
        "select reason, count(*) from duplicates where not keep group by reason order by reason"
    ).fetchall()
    clusters = connection.execute(
        "select count(*) from (select cluster_id from duplicates group by cluster_id having count(*) > 1)"
    ).fetchall()
    largest = connection.execute(
        "select count(*) n, min(image_id) filter (keep), arg_min(image_id, image_id, 3) filter (not keep) "
        "from duplicates group by cluster_id having n > 1 order by n desc, 2 limit $clusters",
        {"clusters": _CLUSTERS},
    ).fetchall()
    return {
        "version": version.version,
        "created_at": version.created_at,
        "images": sum(count for _, count in reasons),
        "reasons": dict(reasons),
        "clusters": clusters[0][0],
        "largest": [{"images": count, "kept": kept, "others": others} for count, kept, others in largest],
    }
