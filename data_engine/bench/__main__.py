"""`python -m data_engine.bench`: the benchmark without the dependencies of the command line, for bare machines."""

from __future__ import annotations

import argparse
import logging
import sys

from data_engine.bench.command import MASK_OPTIONS, contenders, mask_settings, run
from data_engine.bench.mask_generation import BenchOptions
from data_engine.errors import DataEngineError
from data_engine.masks.settings import MaskSettings


def main() -> int:
    """Exit code 2 for an error that the user can act on, shown as one line."""
    given = vars(_parser().parse_args())
    logging.basicConfig(level=logging.INFO if given.pop("verbose") else logging.WARNING, format="%(message)s")
    input_uri, limit, output = (given.pop(name) for name in ("input", "limit", "output"))
    masks = {name: given.pop(name) for name in MASK_OPTIONS}
    try:
        options = BenchOptions(**{**given, "against": contenders(given["against"]), "masks": mask_settings(**masks)})
        run(input_uri, options, limit=limit, output=output)
    except DataEngineError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_engine.bench", description=run.__doc__)
    parser.add_argument("input", metavar="INPUT", help="photographs: whatever `data-engine generate` takes")
    parser.add_argument("--model", default="starter", help="starter, vit_b, vit_l, vit_h (random weights), or a SAM")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="reference", choices=["reference", "fast"])
    parser.add_argument("--compiled", action="store_true")
    usual = MaskSettings()
    for name in MASK_OPTIONS:
        default = getattr(usual, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--limit", type=int, default=1, help="images")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count")
    parser.add_argument("--seconds", type=float, help="begin no further round after so many")
    parser.add_argument("--against", help="segment-anything, transformers, both with a comma between, or none")
    parser.add_argument("--seed", type=int, default=0, help="of random weights")
    parser.add_argument("--output", metavar="FILE.json")
    parser.add_argument("--verbose", action="store_true", help="show each run as it ends")
    return parser


if __name__ == "__main__":
    sys.exit(main())
