"""Writes `quadlab/recorded/worst_cases.json`: for every bound the tightest runs that the falsifier finds.

    python -m tests.make_worst_cases --budget 12 [NAME ...]
    python -m tests.make_worst_cases --random 200000

For each bound two runs are kept: one of any count, and one of at least ten updates. The first is met by a
single step just inside its tolerance for nearly every bound; the second says how tight it is beyond that.
Both are made simpler as long as they keep 99.9 per cent of their ratio, to be read, and are written out as
arrays, so that no number depends on how a CPU's LAPACK builds an eigenbasis. With names, only these bounds
are searched again; an entry changes only if its ratio grows, or if it no longer holds. `--random` records the
best ratios of the soak test's random search over so many checks, to compare.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import quadlab as ql
from quadlab.compare import stop_dict
from quadlab.falsify import Instance, excess, falsify, method_text, simplified
from quadlab.methods import parse_method as parse

FILE = Path(ql.__file__).parent / "recorded" / "worst_cases.json"
SCHEMA = "quadlab.worst_cases/1"
MAX_ITERATIONS = 10_000
#: Which run of each bound -> its least count.
LEAST = {"any": 0, "long": 10}
KEPT, NEAR = 0.999, 1e-9


def measured(instance: Instance, name: str) -> tuple[float | None, int]:
    """The oriented ratio of a run (None: inconclusive, or outside the assumptions) and its updates."""
    table = ql.compare(*instance, max_iterations=MAX_ITERATIONS, bounds=[name])
    run = table.runs[0]
    return excess(run.evaluations[0], run.run), run.run.iterations


def steady(instance: Instance, name: str) -> bool:
    """Whether the count stays when the tolerance moves a little, as on another CPU."""
    field = "delta" if isinstance(instance.stop, ql.Gap) else "eps"
    tolerance = getattr(instance.stop, field)
    stops = [replace(instance.stop, **{field: tolerance * (1 + change)}) for change in (-NEAR, NEAR)]
    counts = {measured(instance._replace(stop=stop), name)[1] for stop in stops}
    return counts == {measured(instance, name)[1]}


def to_json(instance: Instance, ratio: float, iterations: int) -> dict[str, Any]:
    blocks = [b.diagonal() if b.storage == "diagonal" else b.to_dense() for b in instance.problem.blocks]
    return {
        "ratio": ratio,
        "iterations": iterations,
        "blocks": [block.tolist() for block in blocks],
        "start": instance.problem.displacement.tolist(),
        "method": method_text(instance.method),
        "stop": stop_dict(instance.stop),
    }


def from_json(entry: dict[str, Any]) -> Instance:
    start = np.array(entry["start"])
    problem = ql.BlockQuadratic.from_blocks(entry["blocks"], start=start, minimizer=np.zeros(start.size))
    stop = dict(entry["stop"])
    test = stop.pop("test")
    order = {"l1": 1, "l2": 2, "linf": np.inf}.get(test)
    return Instance(
        problem,
        parse(entry["method"]),
        ql.Gap(**stop) if order is None else ql.GradientNorm(ord=order, **stop),
    )


def search(name: str, least: int, budget: float, seed: int) -> dict[str, Any] | None:
    """The tightest run found, made simpler; None if there is none."""
    try:
        found = falsify(name, budget=budget, seed=seed, max_iterations=MAX_ITERATIONS, least_iterations=least)
    except ValueError:  # nothing to which it applies
        return None
    if found.violated:
        raise SystemExit(f"violated:\n{found}")

    def keep(instance: Instance) -> bool:
        ratio, iterations = measured(instance, name)
        if ratio is None or not KEPT * found.best_ratio <= ratio <= 1.0 or iterations < least:
            return False
        return steady(instance, name)

    simple = simplified(found.worst, keep, max(2.0, budget / 2))
    entry = to_json(simple, *measured(simple, name))
    # what is kept is what the file gives back
    ratio, iterations = measured(from_json(entry), name)
    return entry | {"ratio": ratio, "iterations": iterations}


def random_search(checks: int, seed: int) -> dict[str, Any]:
    """The best ratios of the soak test's draws, oriented as the falsifier's."""
    from tests.soak import soak

    tally = soak(checks, seed, jobs=1, progress=True)
    best: dict[str, Any] = {}
    for entry in ql.bounds().of_runs:
        line = tally.lines[entry.name]
        best[entry.name] = {"checked": line.checked}
        for label, ratios in (("any", line.ratios), ("long", line.long)):
            if ratios:
                ratio = 1.0 / min(ratios) if entry.kind == "lower" else max(ratios)
                best[entry.name][label] = {"ratio": min(ratio, 1.0)}
    return {"checks": tally.checks, "runs": tally.runs, "seed": seed, "best": best}


def write(kept: dict[str, Any], random: dict[str, Any]) -> None:
    table = {
        "schema": SCHEMA,
        "least_iterations": LEAST,
        "max_iterations": MAX_ITERATIONS,
        "bounds": kept,
        "random": random,
    }
    FILE.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="bounds; default all")
    parser.add_argument("--budget", type=float, default=12.0, help="seconds a bound, about; default 12")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", type=int, metavar="CHECKS", help="record a random search instead")
    options = parser.parse_args()
    record = json.loads(FILE.read_text())
    kept, random = record["bounds"], record["random"]
    if options.random:
        write(kept, random_search(options.random, options.seed))
        return
    for name in options.names or ql.bounds().of_runs.names:
        begin = time.perf_counter()
        entries = kept.setdefault(name, {})
        for label, least in LEAST.items():
            new = search(name, least, options.budget * (0.6 if least else 0.4), options.seed)
            old = entries.get(label)
            stands = old is not None and (measured(from_json(old), name)[0] or 0.0) >= KEPT * old["ratio"]
            if new is not None and not (stands and old["ratio"] >= new["ratio"]):
                entries[label] = new
        told = ", ".join(f"{label} {entry['ratio']:.4f}" for label, entry in entries.items())
        print(f"{name:34s} {told}  ({time.perf_counter() - begin:.0f} s)", flush=True)
        write(kept, random)


if __name__ == "__main__":
    main()
