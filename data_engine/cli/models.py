"""`data-engine models`."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from data_engine.cli.app import app, out
from data_engine.errors import UsageError

if TYPE_CHECKING:
    from data_engine.sam.checkpoint_facts import CheckpointFacts
    from data_engine.sam.checkpoints import Checkpoint

models_app = typer.Typer(help="Known models: list, show, fetch and export them.", invoke_without_command=True)
app.add_typer(models_app, name="models")

SourceArgument = Annotated[str, typer.Argument(metavar="NAME_OR_FILE", help="A known model, a checkpoint file or URL.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class LayoutChoice(str, Enum):
    segment_anything = "segment-anything"
    transformers = "transformers"


class DtypeChoice(str, Enum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@models_app.callback()
def models(context: typer.Context) -> None:
    """List the known models when called without a command."""
    if context.invoked_subcommand is None:
        list_models()


@models_app.command("list")
def list_models(
    paths: Annotated[bool, typer.Option("--paths", help="Also where each is, or would be once fetched.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The models that can be used by name."""
    from data_engine.sam.checkpoints import cached_path, registry

    known = list(registry().values())
    if as_json:
        _print_json([_listed(checkpoint) for checkpoint in known])
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "parameters", "size", "licence", "here", "sha256"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("parameters", "size") else "left")
    table.add_column("what it is")
    for checkpoint in known:
        table.add_row(
            checkpoint.name,
            f"{checkpoint.parameters / 1e6:,.1f} M" if checkpoint.parameters else "?",
            f"{checkpoint.size / 1e6:,.0f} MB" if checkpoint.size else "?",
            checkpoint.licence,
            "yes" if cached_path(checkpoint).exists() else "no",
            checkpoint.sha256[:12] or "?",
            checkpoint.description,
        )
    out.print(table)
    if paths:
        out.print()
        for checkpoint in known:
            out.print(f"{checkpoint.name:<10} {cached_path(checkpoint)}", soft_wrap=True)


def _listed(checkpoint: Checkpoint) -> dict[str, Any]:
    from data_engine.sam.checkpoints import cached_path

    path = cached_path(checkpoint)
    return {
        "name": checkpoint.name,
        "description": checkpoint.description,
        "licence": checkpoint.licence,
        "sha256": checkpoint.sha256 or None,
        "bytes": checkpoint.size or None,
        "parameters": checkpoint.parameters or None,
        "url": checkpoint.url,
        "path": str(path),
        "cached": path.exists(),
    }


@models_app.command("show", epilog="Examples:\n\ndata-engine models show sam_vit_b\n\ndata-engine models show mine.pth")
def show_model(source: SourceArgument, as_json: JsonOption = False) -> None:
    """What is known of a model: its sizes, where it is, its checksum. A known model is not fetched for it."""
    from dataclasses import asdict

    from data_engine.sam.checkpoint_facts import describe

    facts = describe(source)
    if as_json:
        shown = {name: value for name, value in asdict(facts).items() if name != "size"}
        _print_json(shown | {"path": str(facts.path), "bytes": facts.size})
        return
    for name, value in _rows(facts):
        out.print(f"{name:<24}{value}".rstrip(), soft_wrap=True)


def _rows(facts: CheckpointFacts) -> list[tuple[str, str]]:
    from dataclasses import asdict

    total = sum(facts.parameters.values())
    rows = [
        ("name", facts.name),
        ("file", f"{facts.path}" + ("" if facts.cached else " (not there yet)")),
        ("size", f"{facts.size:,} bytes"),
        ("sha256", facts.sha256),
        ("licence", facts.licence or "not known"),
        ("layout", facts.layout),
        ("dtype", facts.dtype),
        ("parameters", f"{total:,}"),
    ]
    rows += [(f"  {part}", f"{count:,}") for part, count in facts.parameters.items()]
    rows.append(("architecture", ""))
    for name, value in asdict(facts.architecture).items():
        text = ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
        rows.append((f"  {name}", text))
    return rows


@models_app.command("fetch")
def fetch_model(name: Annotated[str, typer.Argument(help="A name from `models list`.")]) -> None:
    """Download a model now, verified, so that a job need not."""
    from data_engine.sam.checkpoints import registry, resolve

    if name not in registry():
        raise UsageError(f"no model {name!r}: known are {', '.join(registry())}")
    out.print(str(resolve(name)[1]), soft_wrap=True)


@models_app.command(
    "export",
    epilog="Examples:\n\ndata-engine models export mine.safetensors mine.pth --layout segment-anything\n\n"
    "data-engine models export sam_vit_b sam-vit-base/ --layout transformers --dtype float16",
)
def export_model(
    source: SourceArgument,
    destination: Annotated[
        Path,
        typer.Argument(metavar="DEST", help="segment-anything: a .pth file; transformers: a folder."),
    ],
    layout: Annotated[LayoutChoice, typer.Option(help="Whose classes are to load it.")],
    dtype: Annotated[DtypeChoice | None, typer.Option(help="Convert the weights (default: as they are).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a model for segment-anything or for transformers, tensor by tensor the same."""
    from data_engine.sam.checkpoint_export import export_checkpoint

    written = export_checkpoint(source, destination, layout.value, dtype.value if dtype else None, overwrite=overwrite)
    out.print(f"{written.weights}: {written.dtype}, {written.size:,} bytes, sha256 {written.sha256}", soft_wrap=True)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
