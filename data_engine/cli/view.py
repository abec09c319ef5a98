"""`data-engine view`."""

from __future__ import annotations

from typing import Annotated

import typer

from data_engine.cli.app import OutputArgument, app, err, out
from data_engine.errors import DatasetError


@app.command(
    epilog="Examples:\n\ndata-engine view masks/\n\n"
    "data-engine view masks/ --against masks-sam/ --port 8000\n\n"
    "data-engine view masks/ --model sam_vit_b\n\n"
    "ssh -t -L 8000:localhost:8000 HOST data-engine view s3://bucket/masks --port 8000 --no-browser"
)
def view(
    output: OutputArgument,
    against: Annotated[
        str | None, typer.Option(metavar="OTHER", help="A second dataset of the same images, shown beside it.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = 0,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FILE",
            help="What answers clicks on the page /correct: a known model, a checkpoint file or URL. "
            "Default: the model that made OUTPUT, loaded when that page is opened.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Of that model: auto, cpu, cuda or cuda:N.")] = "auto",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    input: Annotated[
        str | None, typer.Option(help="The INPUT of the dataset, signed anew, where it was a signed link.")
    ] = None,
) -> None:
    """Look at the masks of OUTPUT in a browser, judge them (/audit) and correct them (/correct). Ctrl-C ends it."""
    try:
        from data_engine.viewer.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise DatasetError(f"the viewer needs {error.name}: pip install 'data-engine[view]'") from None
    from data_engine.viewer.run import ViewedRun

    roots = [output] if against is None else [output, against]
    with err.status("reading the commits"):
        runs = [ViewedRun(root, input, model, device) for root in roots]

    def on_ready(address: str, once: str) -> None:
        out.print(address, soft_wrap=True)
        out.file.flush()
        err.print("Ctrl-C ends it.")
        if browser:
            import webbrowser

            webbrowser.open(once)

    serve(runs, port, on_ready)
