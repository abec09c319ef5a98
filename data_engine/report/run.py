"""From one dataset, or two side by side, to a page and its figures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

from data_engine.dataset.reader import MaskDataset
from data_engine.errors import DatasetError
from data_engine.pipeline.plan import JobPlan, read_plan
from data_engine.report.figures import SCHEMA, Figures, gather
from data_engine.report.pictures import Picture, draw_pictures
from data_engine.report.sheets import locate
from data_engine.sql.background import interruptible
from data_engine.sql.session import connect, run_error

if TYPE_CHECKING:
    import duckdb

_PICTURE_BYTES = 4_000_000  # of the JPEGs of one dataset; a page with 16 pictures a sheet has a third of it


@dataclass(frozen=True, slots=True)
class Side:
    """One dataset of a report."""

    figures: Figures
    pictures: dict[tuple[str, int | None], Picture]

    def as_json(self) -> dict[str, Any]:
        shown = self.figures.as_json()
        for picks in shown["sheets"].values():
            for pick in picks:
                picture = self.pictures.get((pick["image_id"], pick["mask_id"]))
                pick["missing"] = None if picture is None else picture.missing or None
        return shown


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings:
    """pictures: on each contact sheet. seed: draws the random ones."""

    pictures: int = 8
    seed: int = 0


def look_at(
    root: str,
    settings: ReportSettings,
    on_step: Callable[[str], None] = lambda step: None,
    input_uri: str | None = None,
) -> Side:
    """Reads one dataset. `input_uri`: its input, signed anew, where it was a signed link.

    Raises DatasetError where there is none, or where a file of it cannot be read.
    """
    plan = read_plan(root)
    if plan is None:
        raise DatasetError(f"no dataset at {root}: it has no _plan/job.json")
    dataset = MaskDataset(root)
    stopped = Event()

    def step(text: str) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        on_step(text)

    with _connection(dataset) as connection:

        def look() -> Side:
            figures = gather(dataset, plan, connection, settings.pictures, settings.seed, step)
            return Side(figures, _pictures(dataset, plan, connection, figures, input_uri, step))

        def stop() -> None:
            stopped.set()
            connection.interrupt()

        return interruptible(look, stop)


def report_json(sides: list[Side]) -> dict[str, Any]:
    """The figures of the page: `datasets` has one, or the two that are compared, the second being `--against`."""
    return {"schema_version": SCHEMA, "datasets": [side.as_json() for side in sides]}


def _pictures(
    dataset: MaskDataset,
    plan: JobPlan,
    connection: duckdb.DuckDBPyConnection,
    figures: Figures,
    input_uri: str | None,
    on_step: Callable[[str], None],
) -> dict[tuple[str, int | None], Picture]:
    picks = [pick for sheet in figures.sheets for pick in sheet.picks]
    if not picks:
        return {}
    on_step("places of the chosen images")
    places = locate(dataset, connection, {pick.image_id for pick in picks})
    done = 0

    def on_image() -> None:
        nonlocal done
        done += 1
        on_step(f"originals: {done} of {len(places)}")

    return draw_pictures(dataset, plan, places, picks, _PICTURE_BYTES, input_uri, on_image)


@contextmanager
def _connection(dataset: MaskDataset) -> Iterator[duckdb.DuckDBPyConnection]:
    """Large sorts go to a temporary folder; footers that were read once are kept."""
    with tempfile.TemporaryDirectory(prefix="data-engine-report-") as spill:
        connection = connect(dataset)  # says so, should DuckDB be missing
        import duckdb

        try:
            connection.execute("set temp_directory = $spill", {"spill": spill})
            connection.execute("set parquet_metadata_cache = true")
            yield connection
        except duckdb.Error as error:
            raise run_error(error) from None
        finally:
            connection.close()
