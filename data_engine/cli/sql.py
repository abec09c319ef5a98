"""`data-engine sql`."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Annotated

import typer

from data_engine.cli.app import OutputArgument, app, err, out
from data_engine.errors import UsageError
from data_engine.storage import is_local, local_path

if TYPE_CHECKING:
    import pyarrow as pa

    from data_engine.dataset.reader import MaskDataset
    from data_engine.sql.session import SqlSession

EXAMPLES = (
    "select count(*), avg(area) from masks",
    "select error_type, count(*) n from images where status = 'failed' group by all order by n desc",
    "select image_id, n_masks from images order by n_masks desc limit 10",
    "select round(stability_score, 2) s, count(*) n from masks group by s order by s",
    "select i.uri, m.bbox_x, m.bbox_y, m.bbox_w, m.bbox_h from masks m join images i using (image_id) "
    "where m.area > 0.5 * m.width * m.height",
)


@app.command(
    epilog="Examples:\n\ndata-engine sql masks/   (the views, their columns, examples)\n\n"
    + "\n\n".join(f'data-engine sql masks/ "{query}"' for query in EXAMPLES[:3])
    + '\n\ndata-engine sql s3://bucket/masks "from masks where area < 100" --parquet small.parquet'
)
def sql(
    output: OutputArgument,
    query: Annotated[str | None, typer.Argument(metavar="QUERY", help="One SELECT, in DuckDB's SQL.")] = None,
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="Write all rows as CSV; - is stdout.")] = None,
    parquet: Annotated[str | None, typer.Option(metavar="FILE", help="Write all rows as Parquet.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all rows as a JSON array of objects.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the table that is printed otherwise.")] = 100,
) -> None:
    """Ask a dataset: SQL over its images, masks, rejects and duplicates. Reads committed files alone."""
    from data_engine.dataset.reader import MaskDataset
    from data_engine.sql.answers import as_records, as_table, read_rows, write_csv, write_json, write_parquet
    from data_engine.sql.session import SqlSession

    if sum((csv is not None, parquet is not None, json)) > 1:
        raise UsageError("choose one of --csv, --parquet and --json")
    if query is None and (csv or parquet or json):
        raise UsageError("--csv, --parquet and --json need a query")
    dataset = MaskDataset(output)
    for destination in (csv, parquet):
        _refuse_inside(destination, dataset)
    with SqlSession(dataset) as session:
        if query is None:
            _print_views(session, dataset)
            return
        with err.status("asking"):
            answer = session.query(query)
        if json or csv == "-":
            (write_json if json else write_csv)(answer, sys.stdout)
        elif csv is not None:
            _write_file(csv, answer, _csv_bytes)
        elif parquet is not None:
            _write_file(parquet, answer, write_parquet)
        else:
            with err.status("asking"):
                first, more = read_rows(answer, rows)
            table = as_table(answer.schema, first)
            wide = out.measure(table, options=out.options.update(width=100_000)).maximum > out.width
            out.print(as_records(answer.schema, first) if wide else table)
            if more:
                err.print(f"the first {rows:,} rows; --rows shows more, --csv and --parquet write all", soft_wrap=True)


def _print_views(session: SqlSession, dataset: MaskDataset) -> None:
    counts = {"images": dataset.totals.images, "masks": dataset.totals.masks}
    for view, columns in session.views.items():
        out.print(f"{view} ({counts[view]:,} rows)" if view in counts else view, style="bold")
        width = max(map(len, columns), default=0)
        for column, type in columns.items():
            out.print(f"  {column:<{width}}  {type}", soft_wrap=True)
    out.print("examples", style="bold")
    for example in EXAMPLES:
        out.print(f'  data-engine sql {dataset.root} "{example}"', soft_wrap=True)


def _write_file(
    destination: str, answer: pa.RecordBatchReader, write: Callable[[pa.RecordBatchReader, IO[bytes]], int]
) -> None:
    """The whole file or none: it is put under its name when the last row is there."""
    from rich.text import Text

    from data_engine.dataset.export.destination import in_the_making, put_stream, room_for

    with err.status(Text(f"writing {destination}")), in_the_making("an answer") as file:
        with room_for("an answer"):
            rows = write(answer, file)
            file.seek(0)
        put_stream(destination, file)
    out.print(f"{destination}: {rows:,} rows", soft_wrap=True)


def _csv_bytes(answer: pa.RecordBatchReader, file: IO[bytes]) -> int:
    from data_engine.sql.answers import write_csv

    text = io.TextIOWrapper(file, "utf-8", newline="")
    rows = write_csv(answer, text)
    text.detach()  # flushes, and leaves the file open
    return rows


def _refuse_inside(destination: str | None, dataset: MaskDataset) -> None:
    """A file in the dataset's folder could stand in the place of one of its own."""
    if destination is None or destination == "-":
        return
    places = [str(local_path(uri)) if is_local(uri) else uri.rstrip("/") for uri in (destination, dataset.root)]
    if places[0].startswith(f"{places[1]}/"):
        raise UsageError(f"{destination} is inside the dataset: choose another place")
