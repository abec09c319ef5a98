"""A cluster of simulated workers under the real scheduler: a day of a large job, in minutes, on one core.

    python benchmarks/simulate_cluster.py --workers 1000 --shards 1000000 --output benchmarks/results/simulation.json
    python benchmarks/simulate_cluster.py --compare --shards 200000 --output benchmarks/results/simulation.json

`simulation/world.py` says what the workers and the shards are like; docs/scheduling.md has the figures.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from simulation.cluster import Simulation
from simulation.world import World

from data_engine.pipeline.scheduler import Policy


def compare(world: World) -> list[dict[str, Any]]:
    """The same world under other policies, where the plan does not know how long shards are, and without its store."""
    cases: list[dict[str, Any]] = [
        *({"max_in_flight": held, "speculate": factor} for held in (1, 2, 3) for factor in (None, 2.0)),
        {"max_in_flight": 2, "speculate": 2.0, "known_sizes": False},
        {"max_in_flight": 2, "speculate": 2.0, "store_away": (1800.0, 3600.0)},
    ]
    results = []
    for case in cases:
        policy = Policy(max_in_flight=case["max_in_flight"], speculate=case["speculate"])
        differs = {key: value for key, value in case.items() if key in ("known_sizes", "store_away")}
        results.append(Simulation(replace(world, **differs), policy).run())
        print(json.dumps(case | {key: results[-1][key] for key in ("utilisation", "makespan_h", "tail", "counts")}))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=World().workers)
    parser.add_argument("--shards", type=int, default=World().shards)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-in-flight", type=int, default=Policy().max_in_flight)
    parser.add_argument("--no-speculation", action="store_true")
    parser.add_argument("--compare", action="store_true", help="several policies instead of one")
    parser.add_argument("--output", type=Path, help="a JSON file; what else it holds is kept")
    arguments = parser.parse_args()
    world = World(workers=arguments.workers, shards=arguments.shards, seed=arguments.seed)
    speculate = None if arguments.no_speculation else Policy().speculate
    policy = Policy(max_in_flight=arguments.max_in_flight, speculate=speculate)
    result = compare(world) if arguments.compare else Simulation(world, policy).run()
    print(json.dumps(result, indent=1))
    if arguments.output is not None:
        results = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
        results["compared" if arguments.compare else "full"] = result
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
