"""Golden predictions: what `compare` says about every named case, written to golden.json.

``make golden REASON="why they change"`` rewrites the file; the reasons are kept in it. Counts are compared
exactly and bounds to 1e-9. LAPACK gives other bits on other CPUs, so the Haar-rotated cases are read from the
problem files in tests/data, and the others are checked against theirs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import quadlab as ql
from quadlab.compare import RunComparison, compare
from quadlab.methods import (
    GD,
    METHODS,
    Adam,
    AdamMini,
    FrozenAdam,
    NormalizedGD,
    RMSProp,
    SignSGD,
    SteepestDescent,
)
from quadlab.problem import BlockQuadratic, load
from quadlab.steps import cosine, inverse_sqrt, linear_decay, warmup
from quadlab.stopping import Gap, GradientNorm

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.json"
DATA = HERE / "data"
CAP = 20_000

L1 = GradientNorm(1e-2, ord=1, relative=True)
L2 = GradientNorm(1e-2, ord=2, relative=True)
LINF = GradientNorm(1e-2, ord=float("inf"), relative=True)
GAP = Gap(1e-4, relative=True)
LOOSE = GradientNorm(0.7, ord=1, relative=True)

#: label -> (method, stop). Every built-in bound on runs applies to one of them at least.
RUNS: dict[str, tuple[Any, Any]] = {
    "gd lambda_g": (GD("lambda_g"), L2),
    "gd lambda_g, l1": (GD("lambda_g"), L1),
    "gd line_search": (GD("line_search"), GAP),
    "gd 1/L": (GD(1 / 5000), L2),
    "gd optimal": (GD("optimal"), GAP),
    "gd optimal, linf": (GD("optimal"), LINF),
    "gd momentum lemma": (GD("lemma", momentum=0.9), L2),
    "normalized_gd lemma": (NormalizedGD("lemma"), L2),
    "signsgd lambda_p": (SignSGD("lambda_p"), L1),
    "signsgd m_star": (SignSGD("m_star"), L1),
    "signsgd line_search": (SignSGD("line_search"), GAP),
    "signsgd optimal": (SignSGD("optimal"), L1),
    "signsgd 0.001": (SignSGD(1e-3), L2),
    "signsgd 0.5": (SignSGD(0.5), GAP),
    "adam 0.01": (Adam(1e-2), L1),
    "adam 0.01, beta1 = 0": (Adam(1e-2, beta1=0.0, beta2=0.9), L1),
    "adam short": (Adam(1e-4, beta1=0.0, beta2=0.99, epsilon=1.0), GAP),
    "adam a posteriori": (Adam(1e-5, beta1=0.0, beta2=0.5), LOOSE),
    "adam is signsgd": (Adam("lemma", beta1=0.0, beta2=0.0, epsilon=0.0), L1),
    "rmsprop line_search": (RMSProp("line_search"), L1),
    "frozen optimal": (FrozenAdam("optimal"), GAP),
    "frozen 0.001": (FrozenAdam(1e-3), GAP),
    "adam a priori": (Adam(0.02, beta1=0.5, beta2=0.5), LOOSE),
    "adam_mini a priori": (AdamMini(0.005, beta1=0.5, beta2=0.5), LOOSE),
    "adam_mini lemma, no memory": (AdamMini("lemma", beta1=0.0, beta2=0.0, epsilon=0.0), L1),
    "steepest linf lemma": (SteepestDescent("lemma", "linf"), L1),
    "steepest linf 5e-05": (SteepestDescent(5e-5, "linf"), L1),
    "steepest block lemma": (SteepestDescent("lemma", "block"), L2),
    "steepest block 1e-04": (SteepestDescent(1e-4, "block"), L2),
    "signsgd linear_decay": (SignSGD(linear_decay(0.02, 5000)), L1),
    "signsgd inverse_sqrt": (SignSGD(inverse_sqrt(0.1)), L1),
    "adam warmup": (Adam(warmup(100, 0.01)), L1),
}
#: Learning rates of each kind; aliases are left out.
RATES = ("constant", "cosine", "lemma", "line_search", "m_star", "optimal")


def every_method_and_rate() -> dict[str, tuple[Any, Any]]:
    """Return a run, to the l_1 target, of every named method with every kind of learning rate it takes."""
    found = {}
    for name, maker in METHODS.items():
        number = 1e-4 if name in ("gd", "steepest") else 1e-2
        for kind in RATES:
            rate: Any = {"constant": number, "cosine": cosine(2 * number, 10_000)}.get(kind, kind)
            try:
                found[f"{name}: {kind}"] = maker(rate), L1
            except ValueError:  # a rule of other methods
                continue
    return found


RUNS |= every_method_and_rate()


def two_eigenvectors() -> BlockQuadratic:
    """The hard start of zhang2024's Proposition 1: exact in float64."""
    return BlockQuadratic.from_spectra(
        [[1.0, 2.0, 64.0]], start=[64.0, 0.0, 1.0], minimizer=[0.0, 0.0, 0.0], name="two eigenvectors"
    )


def problems() -> dict[str, BlockQuadratic]:
    """Every named case as stored, and the hard start of the lower bound."""
    stored = {name: load(DATA / f"{name}.npz").with_name(name) for name in ql.cases()}
    return {**stored, "two eigenvectors": two_eigenvectors()}


def predictions(problem: BlockQuadratic) -> dict[str, Any]:
    """Return status, count and the applying bounds of every run."""
    methods, stops = zip(*RUNS.values(), strict=True)
    frozen = problem.gradient(problem.start).all()  # a frozen preconditioner takes no zero
    kept = [k for k, method in enumerate(methods) if frozen or getattr(method, "beta2", 0.0) != 1.0]
    labels = list(RUNS)
    compared = compare(problem, [methods[k] for k in kept], [stops[k] for k in kept], max_iterations=CAP)
    return {labels[k]: _entry(run) for k, run in zip(kept, compared.runs, strict=True)}


def _entry(comparison: RunComparison) -> dict[str, Any]:
    bounds = {e.name: [e.to_dict()["value"], e.holds] for e in comparison.evaluations if e.applies}
    told = comparison.to_dict()
    return {name: told[name] for name in ("status", "iterations", "best_bound")} | {"bounds": bounds}


def read() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reason", required=True, help="why the predictions change; kept in the file")
    parser.add_argument("--problems", action="store_true", help="store the named cases anew as well")
    options = parser.parse_args(argv)
    if not options.reason.strip():
        parser.error("the reason is empty")
    if options.problems:
        DATA.mkdir(exist_ok=True)
        for name in ql.cases():
            ql.case(name, seed=0).save(DATA / f"{name}.npz")
    reasons = read()["reasons"] if GOLDEN.exists() else []
    golden = {
        "reasons": [*reasons, options.reason.strip()],
        "cases": {name: predictions(problem) for name, problem in problems().items()},
    }
    # one run a line: a change of one prediction is a change of one line
    text = json.dumps(golden, indent=1, allow_nan=False)
    head, cases = text.partition(' "cases": {')[:2]
    lines = []
    for name, runs in golden["cases"].items():
        inner = ",\n".join(f"   {json.dumps(label)}: {json.dumps(run)}" for label, run in runs.items())
        lines.append(f"  {json.dumps(name)}: {{\n{inner}\n  }}")
    GOLDEN.write_text(head + cases + "\n" + ",\n".join(lines) + "\n }\n}\n")


if __name__ == "__main__":
    main()
