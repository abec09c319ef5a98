"""Drawing a sample and storing it beside its dataset, once for each name."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_engine import __version__
from data_engine.dataset.commits import CommitRecord
from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError
from data_engine.human_audit.design import Design
from data_engine.human_audit.draw import Chosen, OnSlice, draw, histogram
from data_engine.human_audit.sample import (
    OF_MASK,
    SAMPLE,
    Population,
    Sample,
    SampleFacts,
    audit_folder,
    digest,
)
from data_engine.human_audit.scan import mask_starts, read_columns, read_rows, side_by_side
from data_engine.human_audit.score_bins import ScoreBins
from data_engine.pipeline.commit import new_owner, put, put_if_absent
from data_engine.storage import join, read_bytes


def make_sample(dataset: MaskDataset, name: str, design: Design, on_slice: OnSlice = lambda record: None) -> Sample:
    """Draws a sample and stores it. The sample that is there already, if its design and dataset are the same.

    on_slice is told each slice twice, once for either pass. Raises DatasetError when the name is taken by another
    design or by another state of the dataset, or when there is nothing to draw from.
    """
    folder = audit_folder(dataset.root, name)
    scores = histogram(dataset, on_slice)
    bins = scores.bins(design.bins, design.stability_edges, design.iou_edges)
    cells = scores.cells(bins)
    drawn = draw(dataset, design, bins, cells, on_slice)
    table = _look_up(dataset, drawn.chosen, bins)
    facts = SampleFacts(
        name=name,
        design=design,
        bins=bins,
        population=Population(
            fingerprint=str(dataset.plan.get("fingerprint", "")),
            complete=dataset.complete,
            commits_sha256=state_digest(dataset.commits),
            images=len(dataset),
            images_with_masks=drawn.images_with_masks,
            masks=scores.masks,
            cells=cells,
        ),
        strata=drawn.strata,
        images=drawn.images_drawn,
        masks=table.num_rows,
        sha256=digest(table),
        owner=new_owner(),
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        code_version=__version__,
    )
    where = join(folder, "sample.json")
    if not put_if_absent(where, facts.to_json()):
        there = SampleFacts.from_json(read_bytes(where), where)
        if (there.design, there.population.commits_sha256) != (design, facts.population.commits_sha256):
            raise DatasetError(_taken(there, facts))
        if there.sha256 != facts.sha256:
            raise DatasetError(
                f"{where} names a sample that version {there.code_version} of data-engine drew and this one draws "
                "otherwise: choose another --name"
            )
        facts = there
    put(join(folder, "sample.parquet"), _parquet(table))
    return Sample(dataset.root, facts, table)


def state_digest(records: list[CommitRecord]) -> str:
    """Of what is committed, in no order."""
    found = hashlib.sha256()
    for line in sorted(f"{record.shard} {record.slice} {record.masks.sha256}\n" for record in records):
        found.update(line.encode())
    return found.hexdigest()


def _taken(there: SampleFacts, wanted: SampleFacts) -> str:
    old, new = asdict(there.design), asdict(wanted.design)
    changed = [f"{key}: {old[key]} there, {new[key]} asked for" for key in old if old[key] != new[key]]
    what = "; ".join(changed) or "the dataset has changed since it was drawn"
    return f"there is an audit named {there.name!r} already ({what}): choose another --name"


def _look_up(dataset: MaskDataset, chosen: Chosen, bins: ScoreBins) -> pa.Table:
    """The rows of the chosen masks, in their order."""
    by_record: defaultdict[int, list[int]] = defaultdict(list)
    for position, record in enumerate(chosen.record.tolist()):
        by_record[record].append(position)

    def rows(job: tuple[int, list[int]]) -> pa.Table:
        return _rows_of_slice(dataset, dataset.commits[job[0]], chosen, np.array(job[1]))

    parts = list(side_by_side(rows, by_record.items()))
    table = pa.concat_tables(parts).sort_by("position")
    of_bins = bins.of(table["stability_score"].to_numpy(), table["predicted_iou"].to_numpy())
    for name, numbers in zip(("stability_bin", "iou_bin"), of_bins, strict=True):
        table = table.append_column(name, pa.array(numbers, pa.int32()))
    return table.select(SAMPLE.names).cast(SAMPLE).combine_chunks()


def _rows_of_slice(dataset: MaskDataset, record: CommitRecord, chosen: Chosen, positions: np.ndarray) -> pa.Table:
    _, starts = mask_starts(dataset, record)
    wanted = starts[chosen.image[positions]] + chosen.mask_id[positions]
    order = np.argsort(wanted)
    positions, wanted = positions[order], wanted[order]
    masks = read_rows(dataset, record.masks, wanted, ["image_id", "mask_id", *(field.name for field in OF_MASK)])
    images = read_columns(dataset, record.images, ["image_id", "uri", "sha256"]).take(chosen.image[positions])
    if masks["image_id"] != images["image_id"] or (masks["mask_id"].to_numpy() != chosen.mask_id[positions]).any():
        raise DatasetError(f"{join(dataset.root, record.masks.file)}: its masks are not those its images say; audit it")
    columns: dict[str, Any] = {
        "position": positions,
        "inclusion_probability": chosen.probability[positions],
        "uri": images["uri"],
        "sha256": images["sha256"],
        "shard": [record.shard] * len(positions),
        "slice": np.full(len(positions), record.slice),
        "row": chosen.image[positions],
    }
    for name, column in columns.items():
        masks = masks.append_column(name, column if isinstance(column, pa.ChunkedArray) else pa.array(column))
    return masks


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()
