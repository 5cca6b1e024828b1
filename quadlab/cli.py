"""The command line: ``quadlab COMMAND``, each with ``--json``; ``quadlab --help`` lists the commands.

Exit status: 0; 1 if a bound is violated or a run of a sweep failed; 2 with one line on stderr for bad input.
Everything but argparse is imported by the command that needs it, so that ``quadlab --help`` is immediate.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from quadlab.problem import BlockQuadratic
    from quadlab.stopping import Stop

DEFAULT_METHODS = "gd:lambda_g,signsgd:lambda_p,adam:0.01"
STOPS = {"l1": 1.0, "l2": 2.0, "linf": float("inf")}


class _Parser(argparse.ArgumentParser):
    """Errors take one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = _Parser(prog="quadlab", description="Optimizers on block-diagonal quadratics, beside their bounds.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(run=run)
        return sub

    command("cases", _cases, "List the named problems.")
    sub = command("bounds", _bounds, "List the registered bounds.")
    sub.add_argument("--markdown", action="store_true", help="the README's table, with code, test and figure")
    command("warmup", _warmup, "Compile the kernels into the cache.")
    sub = command("compare", _compare, "Run methods on a problem and hold every bound against the counts.")
    sub.add_argument("problem", metavar="CASE|FILE", help="a named problem, or a file saved by problem.save")
    sub.add_argument(
        "--methods",
        default=DEFAULT_METHODS,
        help="comma-separated NAME:LEARNING_RATE[:OPTION=VALUE...], names gd, signsgd, normalized_gd, adam, "
        f"adamw, rmsprop, frozen_adam, adam_mini, steepest; default {DEFAULT_METHODS}",
    )
    sub.add_argument("--stop", choices=[*STOPS, "gap"], default="l1", help="stopping test; default l1")
    sub.add_argument("--eps", type=float, help="eps of the test (gap: delta); default 1e-3 mean |g_0,i|")
    sub.add_argument(
        "--relative",
        action="store_true",
        help="eps is a fraction of the start's own value; gap: default 1e-6",
    )
    sub.add_argument("--seed", type=int, default=0, help="seed of a named problem; default 0")
    sub.add_argument("--draws", type=int, default=1, help="seeds SEED, SEED+1, ...; default 1")
    sub.add_argument("--max-iterations", type=int, default=10**6, help="cap of a run; default 1000000")
    sub = command("falsify", _falsify, "Search for the problem on which a bound is violated, or tightest.")
    sub.add_argument("bound", metavar="BOUND", help="a registered bound; quadlab bounds lists them")
    sub.add_argument("--budget", type=float, default=30.0, help="seconds to search; default 30")
    sub.add_argument("--seed", type=int, default=0, help="seed of the search; default 0")
    sub.add_argument("--out", type=Path, help="file for the problem found; default worst-BOUND.npz")
    sub = command("figures", _figures, "Draw the figures: PNG, PDF and the data as JSON.")
    sub.add_argument("names", nargs="*", metavar="NAME", help="figures to draw; default all")
    sub.add_argument("--out", type=Path, default=Path("figures"), help="folder; default figures")
    sub.add_argument("--quick", action="store_true", help="small samples, to look")
    sub = command("sweep", _sweep, "Run a grid of named axes into a store that a killed sweep goes on from.")
    sub.add_argument("spec", type=Path, metavar="SPEC.toml", help="the grid; see quadlab.sweep.grid")
    sub.add_argument("--store", type=Path, metavar="FILE", help="SQLite file; default SPEC.sqlite")
    sub.add_argument("--workers", type=int, default=1, metavar="N", help="processes; default 1, this one")
    sub.add_argument("--dask", metavar="ADDRESS", help="of a Dask scheduler, such as tcp://host:8786")
    sub.add_argument("--dry-run", action="store_true", help="count the runs and estimate the time")
    sub.add_argument("--retry-failed", action="store_true", help="run again what is stored as failed")
    sub.add_argument("--csv", type=Path, metavar="FILE", help="write the table")
    _add_bridge(commands)
    return top


def _add_bridge(commands: Any) -> None:
    """Add the commands on real models."""
    help = "Measure the blocks of real models, and replay them as a quadratic."
    bridge = commands.add_parser("bridge", help=help, description=help)
    actions = bridge.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=_Parser)

    def action(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=help, description=help)
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(run=run)
        return sub

    action("models", _bridge_models, "List the small models that come with data.")
    sub = action("measure", _bridge_measure, "Measure gradient, noise and curvature of a model's blocks.")
    sub.add_argument("model", metavar="MODEL", help="a model; quadlab bridge models lists them")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="file for the statistics")
    for name in ("depth", "width", "examples"):
        sub.add_argument(f"--{name}", type=int, metavar="N", help="default: the model's own")
    sub.add_argument("--seed", type=int, default=0, help="of start, data and random vectors; default 0")
    sub.add_argument("--batches", type=int, default=4, help="batches, over which noise is taken; default 4")
    sub.add_argument("--probes", type=int, default=4, help="random vectors for each density; default 4")
    sub.add_argument("--steps", type=int, default=30, help="Lanczos steps for each of them; default 30")
    sub.add_argument("--device", help="such as cuda; default cpu")
    sub = action("replay", _bridge_replay, "Say what measured blocks predict, and make a problem of them.")
    sub.add_argument("statistics", type=Path, metavar="FILE", help="written by quadlab bridge measure")
    sub.add_argument("--out", type=Path, metavar="PROBLEM", help="file for the problem; see quadlab compare")
    sub.add_argument("--max-block-size", type=int, default=64, metavar="N", help="default 64")
    sub.add_argument("--negative", default="absolute", help="negative curvature: absolute (default) or zero")
    sub.add_argument("--noise", action="store_true", help="keep the measured noise in the problem written")
    sub.add_argument("--seed", type=int, default=0, help="of eigenbases and start; default 0")
    sub.add_argument("--max-iterations", type=int, default=10**5, help="cap of a run; default 100000")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""
    options = parser().parse_args(arguments)
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"quadlab {options.command}: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"quadlab {options.command}: interrupted", file=sys.stderr)
        return 130


def _print_json(value: Any) -> None:
    print(json.dumps(value, allow_nan=False, indent=2))


def _cases(options: argparse.Namespace) -> int:
    from quadlab.cases import CASES

    if options.json:
        _print_json([{"name": name, "description": text} for name, text in CASES.items()])
    else:
        width = max(map(len, CASES))
        for name, text in CASES.items():
            print(f"{name:<{width}}  {text}")
    return 0


def _bounds(options: argparse.Namespace) -> int:
    from quadlab.bounds import bounds

    table = bounds()
    if options.markdown:
        from quadlab.bounds.record import markdown

        print(markdown())
    elif options.json:
        _print_json([entry.to_dict() for entry in table])
    else:
        print(table)
    return 0


def _warmup(options: argparse.Namespace) -> int:
    from time import perf_counter

    from quadlab.kernels import entry

    begin = perf_counter()
    entry.warm_up()
    seconds = perf_counter() - begin
    if options.json:
        _print_json({"seconds": seconds})
    else:
        print(f"kernels ready after {seconds:.1f} s")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from quadlab.compare import compare
    from quadlab.methods import parse_method

    methods = [parse_method(text) for text in options.methods.split(",")]
    if options.draws < 1:
        raise ValueError(f"--draws must be >= 1, received {options.draws}")
    problems, seeds = _problems(options)
    comparisons = []
    from quadlab._progress import progress_bar

    pairs = list(zip(problems, seeds, strict=True))
    for problem, seed in progress_bar(iterable=pairs, unit="draw", leave=False):
        stop = _stop(options, problem)
        result = compare(problem, methods, stop, max_iterations=options.max_iterations)
        comparisons.append(result.with_seed(seed))
    if len(comparisons) == 1:
        if options.json:
            _print_json(comparisons[0].to_dict())
        else:
            print(comparisons[0])
    else:
        summary = [_summary([c.runs[k] for c in comparisons]) for k in range(len(methods))]
        if options.json:
            tables = [c.to_dict() for c in comparisons]
            runs = [{"seed": t["seed"], **run} for t in tables for run in t["runs"]]
            head = {key: tables[0][key] for key in ("case", "seed", "stop")}
            _print_json({**head, "draws": options.draws, "runs": runs, "summary": summary})
        else:
            print(f"{options.problem}: {options.draws} draws from seed {options.seed}, stop {options.stop}")
            print(_summary_table(summary))
    return 1 if any(c.violated for c in comparisons) else 0


def _problems(options: argparse.Namespace) -> tuple[list[BlockQuadratic], list[int | None]]:
    from quadlab.cases import CASES, case
    from quadlab.problem import load

    if options.problem in CASES:
        seeds = list(range(options.seed, options.seed + options.draws))
        return case(options.problem, seed=seeds), list(seeds)
    path = Path(options.problem)
    if not path.exists():
        raise ValueError(f"no case and no file of that name: {options.problem}; cases: {', '.join(CASES)}")
    if options.draws != 1:
        raise ValueError(f"--draws needs a named case, received the file {options.problem}")
    return [load(path)], [None]


def _stop(options: argparse.Namespace, problem: BlockQuadratic) -> Stop:
    from quadlab.stopping import Gap, GradientNorm, default_stop

    eps = options.eps
    if options.stop == "gap":
        return Gap(1e-6, relative=True) if eps is None else Gap(eps, relative=options.relative)
    if eps is None:
        eps = 1e-3 if options.relative else default_stop(problem).eps
    return GradientNorm(eps, ord=STOPS[options.stop], relative=options.relative)


def _summary(entries: list[Any]) -> dict[str, Any]:
    """Return one row of the summary over draws; the median counts a censored run as larger than any."""
    from statistics import median

    counts = [e.run.iterations if e.run.converged else float("inf") for e in entries]
    ratios = [e.ratio for e in entries if e.ratio is not None]
    middle = median(counts)
    return {
        "method": str(entries[0].run.method),
        "draws": len(entries),
        "converged": sum(e.run.converged for e in entries),
        "median_iterations": None if middle == float("inf") else middle,
        "median_ratio": median(ratios) if ratios else None,
        "violations": sum(len(e.violated) for e in entries),
    }


def _summary_table(rows: list[dict[str, Any]]) -> str:
    def shown(value: Any) -> str:
        return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    table = [list(rows[0]), *([shown(v) for v in row.values()] for row in rows)]
    widths = [max(len(line[k]) for line in table) for k in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in table)


def _falsify(options: argparse.Namespace) -> int:
    from quadlab.falsify import falsify

    file = options.out or Path(f"worst-{options.bound}.npz")
    result = falsify(options.bound, budget=options.budget, seed=options.seed, file=file)
    if options.json:
        _print_json(result.to_dict())
    else:
        print(result)
    return 1 if result.violated else 0


def _sweep(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from quadlab.sweep import estimate, sweep

    if options.workers < 1:
        raise ValueError(f"--workers must be >= 1, received {options.workers}")
    if options.dask and options.workers != 1:
        raise ValueError("--workers and --dask exclude each other: a cluster has its own workers")
    store = options.store or options.spec.with_suffix(".sqlite")
    if options.dry_run:
        plan = estimate(options.spec, store, options.workers, retry_failed=options.retry_failed)
        if options.json:
            _print_json(asdict(plan))
        else:
            print(
                f"{plan.runs} runs: {plan.stored} stored, {plan.failed} failed, {plan.to_do} to do, "
                f"about {plan.seconds:.3g} s on {options.workers} worker(s)"
            )
        return 0
    executor = options.dask or (options.workers if options.workers > 1 else None)
    table = sweep(options.spec, store, executor, retry_failed=options.retry_failed)
    if options.csv:
        table.to_csv(options.csv)
    if options.json:
        _print_json({"store": str(store), "statuses": table.statuses, "runs": list(table.rows())})
    else:
        print(f"{table!r} in {store}")
    return 1 if "failed" in table.statuses else 0


def _models() -> Any:
    """Return the module of the models, which needs torch."""
    try:
        from quadlab.bridge import models
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing: pip install 'quadlab[torch]'") from None
    return models


def _bridge_models(options: argparse.Namespace) -> int:
    models = _models()
    rows = []
    for name, description in models.WORKLOADS.items():
        made = models.workload(name)
        blocks = sum(1 for _ in made.model.parameters())
        rows.append(
            {
                "name": name,
                **made.options,
                "parameters": made.size,
                "blocks": blocks,
                "description": description,
            }
        )
        del rows[-1]["seed"]
    if options.json:
        _print_json(rows)
    else:
        print(_summary_table([{key: str(value) for key, value in row.items()} for row in rows]))
    return 0


def _bridge_measure(options: argparse.Namespace) -> int:
    made = _models().workload(
        options.model,
        depth=options.depth,
        width=options.width,
        examples=options.examples,
        seed=options.seed,
    )
    from quadlab.bridge.measure import measure

    try:
        found = measure(
            made.model,
            made.loss,
            made.batches(options.batches),
            probes=options.probes,
            steps=options.steps,
            seed=options.seed,
            device=options.device,
            meta={"name": made.name, **made.options},
        )
    except RuntimeError as error:  # out of memory, or an eigenvalue that does not converge
        raise ValueError(str(error)) from None
    found.save(options.out)
    if options.json:
        _print_json(
            {
                "file": str(options.out),
                "parameters": found.size,
                "blocks": found.n_blocks,
                "lambda_g": found.gradient_weighted,
                "lambda_p": found.parameter_weighted,
                "leakage": found.leakage if options.probes else None,
                "loss": found.loss,
            }
        )
    else:
        print(f"{found!r} in {options.out}")
    return 0


def _bridge_replay(options: argparse.Namespace) -> int:
    from quadlab.bridge.replay import predict, replay
    from quadlab.bridge.statistics import BlockStatistics

    measured = BlockStatistics.load(options.statistics)
    how = {key: getattr(options, key) for key in ("max_block_size", "negative", "seed")}
    found = predict(measured, max_iterations=options.max_iterations, **how)
    if options.out:
        replay(measured, noise=options.noise, **how).save(options.out)
    if options.json:
        problem = str(options.out) if options.out else None
        _print_json({"statistics": str(options.statistics), "problem": problem, **found.to_dict()})
    else:
        print(found)
        if options.out:
            print(f"\n{found.problem!r} in {options.out}")
    return 1 if found.comparison.violated else 0


def _figures(options: argparse.Namespace) -> int:
    from quadlab import figures

    unknown = [name for name in options.names if name not in figures.names()]
    if unknown:
        raise ValueError(f"figure must be one of {', '.join(figures.names())}, received {unknown[0]!r}")
    done = figures.render(options.names or None, options.out, options.quick, not options.json)
    if options.json:
        _print_json(done)
    else:
        for item in done:
            print(f"{item['name']}: {', '.join(map(str, item['files']))} ({item['seconds']:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
