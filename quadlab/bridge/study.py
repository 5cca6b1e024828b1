r"""A question to real models: does what their blocks predict come true in training.

A *pair* is a model with its data at one depth, over a group of seeds. Of each are measured, at the start,
Lambda_G / Lambda_P, JS^0 (the mean Jensen-Shannon distance between block densities) and T_GD / T_Adam on the
replayed quadratic; and in real training, full batch, T_SGD / T_Adam to one loss for all, each optimizer at
its best constant learning rate. Spearman's rank correlation over pairs says whether a prediction ranks the
real gaps: with a bootstrap interval over pairs, and the p-value of a permutation test.

The work is cut into units, each one JSON file in a folder: a unit that was killed is made again, one that is
there is not. Reading and judging what was recorded needs no torch.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics as stats
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from quadlab._arrays import FloatArray, shown
from quadlab._progress import progress_bar
from quadlab.bridge.replay import density_distances, predict
from quadlab.bridge.statistics import BlockStatistics
from quadlab.heterogeneity import spread

SCHEMA = "quadlab.bridge/1"

#: Family of models -> (width, examples, loss to reach): small, so that all of it is done in an hour.
FAMILIES = {
    "gpt": (16, 16, 2.0),
    "vit": (16, 64, 0.1),
    "cnn": (8, 64, 0.1),
    "mlp": (64, 64, 0.1),
}
TRANSFORMERS = ("gpt-pre", "gpt-post", "vit-pre", "vit-post")
DEPTHS = (2, 4, 8)
CAP = 3000
CAP_REPLAYED = 50_000
#: T_GD / T_Adam on the replayed quadratic, Lambda_G / Lambda_P, JS^0.
PREDICTIONS = ("replayed", "lambda_ratio", "mean_jensen_shannon")


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes
    ----------
    kind : str
        "training": updates of each optimizer, full batch. "minibatch": the same on minibatches. "blocks": the
        statistics of the blocks at the start. "extremes": the same without densities. "gradients":
        heterogeneity of the gradient at the start, over ten seeds. "course": heterogeneity at four points of
        Adam's training. "replay": counts on quadratics made of a recorded unit of blocks.
    model : str
        A name in `quadlab.bridge.models.WORKLOADS`.
    depth, seed, width, examples : int
        As for `workload`.
    target : float
        The loss to reach.
    """

    kind: str
    model: str
    depth: int
    seed: int
    width: int
    examples: int
    target: float

    @property
    def key(self) -> str:
        """The name of its file."""
        return f"{self.kind}-{self.model}-{self.depth}-{self.seed}"


def unit(kind: str, model: str, depth: int, seed: int = 0) -> Unit:
    """Return a unit with the width, the examples and the target of the model's family."""
    return Unit(kind, model, depth, seed, *FAMILIES[model[:3]])


def units() -> list[Unit]:
    """Return all units, the most important first: what is cut off by lack of time is the end."""
    gpt, vit = TRANSFORMERS[:2], TRANSFORMERS[2:]
    controls = [("cnn", 2), ("cnn", 3), ("mlp", 2), ("mlp", 4)]
    shallow = [(model, 2) for model in TRANSFORMERS] + controls

    def both(pairs: Sequence[tuple[str, int]], seed: int) -> list[Unit]:
        return [unit(kind, *pair, seed) for pair in pairs for kind in ("training", "blocks")]

    return [
        *both(shallow, 0),
        *(unit("gradients", model, depth) for model in TRANSFORMERS for depth in DEPTHS),
        *both([(model, 4) for model in gpt], 0),
        unit("course", "cnn", 3),
        *(unit("course", model, 2) for model in gpt),
        *both([(model, 4) for model in vit], 0),
        *both(controls, 1),
        *(unit("extremes", model, 8) for model in gpt),
        *(unit("course", model, 2) for model in vit),
        *both([(model, 2) for model in TRANSFORMERS], 1),
        *(unit("minibatch", *pair) for pair in shallow),
        *(unit("extremes", model, 8) for model in vit),
    ]


def replays() -> list[Unit]:
    """Return the units that are made of others, of the blocks."""
    return [replace(task, kind="replay") for task in units() if task.kind == "blocks"]


# -- measuring


def run_unit(task: Unit, store: Path) -> dict[str, Any]:
    """Return what is measured of one unit, for JSON; `store` is the folder of those that it is made of."""
    begin = time.process_time()
    if task.kind == "replay":
        source = store / f"{replace(task, kind='blocks').key}.json"
        content = _replay(task, json.loads(source.read_text()))
    else:
        import torch

        torch.set_num_threads(1)
        content = _KINDS[task.kind](task)
    return {**asdict(task), **content, "cpu_seconds": round(time.process_time() - begin, 1)}


def _workload(task: Unit) -> Any:
    from quadlab.bridge.models import workload

    return workload(task.model, depth=task.depth, width=task.width, examples=task.examples, seed=task.seed)


def _training(task: Unit, optimizers: Sequence[str], batches: int = 1) -> dict[str, Any]:
    from quadlab.bridge.train import train

    w = _workload(task)
    options: dict[str, Any] = {"minibatch": True, "every": 5} if batches > 1 else {}
    found = train(
        w.model,
        w.loss,
        w.batches(batches),
        optimizers,
        target=task.target,
        max_iterations=CAP,
        progress=False,
        **options,
    )
    return {
        "parameters": w.size,
        "optimizers": {
            name: {
                "iterations": result.iterations,
                "learning_rate": _number(result.best.learning_rate),
                "at_edge": result.at_edge,
                "runs": [[_number(run.learning_rate), run.status, run.iterations] for run in result.runs],
            }
            for name, result in found.items()
        },
    }


def _measure(task: Unit, model: Any, probes: int) -> Any:
    from quadlab.bridge.measure import measure

    w = _workload(task)
    return measure(
        model,
        w.loss,
        w.batches(),
        probes=probes,
        steps=16,
        dense_below=32,
        eigenvalue_tolerance=1e-3,
        seed=task.seed,
        progress=False,
    )


def _scales(measured: Any) -> dict[str, Any]:
    """Return the scales of the blocks and how unequal they are."""
    return {
        "names": list(measured.names),
        "sizes": measured.sizes.tolist(),
        "gradient_norms": _numbers(measured.gradient_norms),
        "top": _numbers(measured.top),
        "bottom": _numbers(measured.bottom),
        "loss": _number(measured.loss),
        "lambda_g": _number(measured.gradient_weighted),
        "lambda_p": _number(measured.parameter_weighted),
        **_spreads(measured.gradient_norms, "gradient"),
        **_spreads(measured.block_norms, "hessian"),
    }


def _spreads(values: ArrayLike, what: str) -> dict[str, float | None]:
    found = spread(values)
    return {f"{what}_cv": _number(found.cv), f"{what}_gini": _number(found.gini)}


def _blocks(task: Unit) -> dict[str, Any]:
    measured = _measure(task, _workload(task).model, probes=1)
    return {
        **_scales(measured),
        "leakage": _number(measured.leakage),
        "nodes": [_numbers(nodes) for nodes in measured.nodes],
        "weights": [_numbers(weights) for weights in measured.weights],
    }


def _replay(task: Unit, blocks: dict[str, Any], draws: int = 5) -> dict[str, Any]:
    """Return the counts on replayed quadratics, one entry a draw of the eigenbases and the start."""
    measured = block_statistics(blocks)
    found = [predict(measured, max_iterations=CAP_REPLAYED, seed=seed) for seed in range(draws)]
    return {
        "counts": {name: [prediction.counts[name] for prediction in found] for name in found[0].counts},
        "at_edge": [list(prediction.at_edge) for prediction in found],
        "skipped": list(found[0].skipped),
    }


def _extremes(task: Unit) -> dict[str, Any]:
    return _scales(_measure(task, _workload(task).model, probes=0))


def _gradients(task: Unit, seeds: int = 10) -> dict[str, Any]:
    """Return the spread of the block gradient norms at the start, one entry a seed."""
    rows = []
    for seed in range(seeds):
        w = _workload(replace(task, seed=seed))
        w.loss(w.model.double(), w.data).backward()
        norms = np.array([p.grad.norm().item() for p in w.model.parameters()])
        roots = np.sqrt([p.numel() for p in w.model.parameters()])
        rows.append(_spreads(norms, "gradient") | _spreads(norms / roots, "per_parameter"))
    return {"blocks": len(norms), **{key: [row[key] for row in rows] for key in rows[0]}}


def _course(task: Unit) -> dict[str, Any]:
    """Return the scales at the start, a quarter, half and the end of Adam's best run."""
    import copy

    from quadlab.bridge.train import train, train_at

    w = _workload(task)
    options: dict[str, Any] = {"target": task.target, "max_iterations": CAP}
    best = train(w.model, w.loss, w.batches(), ["adam"], progress=False, **options)["adam"].best
    times = sorted({0, best.iterations // 4, best.iterations // 2, best.iterations})
    kept: dict[int, Any] = {}

    def keep(t: int, model: Any) -> None:
        if t in times:
            kept[t] = copy.deepcopy(model)

    train_at(w.model, w.loss, w.batches(), "adam", best.learning_rate, callback=keep, **options)
    return {
        "learning_rate": _number(best.learning_rate),
        "status": best.status,
        "points": [{"iteration": t, **_scales(_measure(task, kept[t], probes=0))} for t in times],
    }


_KINDS: dict[str, Callable[[Unit], dict[str, Any]]] = {
    "training": functools.partial(_training, optimizers=("sgd", "momentum", "signsgd", "adam")),
    "minibatch": functools.partial(_training, optimizers=("sgd", "adam"), batches=4),
    "blocks": _blocks,
    "extremes": _extremes,
    "gradients": _gradients,
    "course": _course,
}


def _number(value: float | None, digits: int = 5) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [_number(float(value), 4) for value in values]


def run(
    tasks: Sequence[Unit],
    store: Path,
    workers: int = 1,
    work: Callable[[Unit, Path], dict[str, Any]] = run_unit,
    progress: bool | None = None,
) -> None:
    """Make the units that are not in the folder yet, each one file, in order.

    Parameters
    ----------
    tasks : sequence of Unit
        The units.
    store : path
        The folder; made if it is missing.
    workers : int >= 1
        Processes; 1 is this one.
    work : callable
        What makes a unit.
    progress : bool, optional
        A progress bar; None: where somebody looks.
    """
    store.mkdir(parents=True, exist_ok=True)
    waiting = [task for task in tasks if not (store / f"{task.key}.json").exists()]
    with progress_bar(progress, total=len(waiting), unit="unit") as bar:
        if workers == 1:
            for task in waiting:
                _make(task, store, work)
                bar.update()
            return
        from multiprocessing import get_context

        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for future in [pool.submit(_make, task, store, work) for task in waiting]:
                future.result()
                bar.update()


def _make(task: Unit, store: Path, work: Callable[[Unit, Path], dict[str, Any]]) -> None:
    text = json.dumps(work(task, store), allow_nan=False, separators=(",", ":"))
    part = store / f"{task.key}.{os.getpid()}.part"
    part.write_text(text + "\n")
    part.replace(store / f"{task.key}.json")


def collect(tasks: Sequence[Unit], store: Path) -> dict[str, Any]:
    """Return what is in the folder of the units, and the keys of those that are missing."""
    import torch

    paths = {task.key: store / f"{task.key}.json" for task in tasks}
    found = {key: json.loads(path.read_text()) for key, path in paths.items() if path.exists()}
    return {
        "schema": SCHEMA,
        "torch": torch.__version__.partition("+")[0],
        "cap": CAP,
        "missing": [key for key in paths if key not in found],
        "units": found,
    }


# -- judging; torch is not needed


@functools.cache
def _recorded_text() -> str:
    return (resources.files("quadlab") / "recorded" / "bridge.json").read_text()


def recorded() -> dict[str, Any]:
    """Return the measurements recorded with the library.

    Examples
    --------
    >>> recorded()["schema"]
    'quadlab.bridge/1'
    """
    return json.loads(_recorded_text())


def select(
    record: dict[str, Any], kind: str, model: str | None = None, depth: int | None = None
) -> list[Any]:
    """Return the recorded units of a kind, of one model and depth if given, in order."""
    return [
        entry
        for entry in record["units"].values()
        if entry["kind"] == kind and model in (None, entry["model"]) and depth in (None, entry["depth"])
    ]


def block_statistics(entry: dict[str, Any]) -> BlockStatistics:
    """Return the statistics that a unit of blocks holds; what was not recorded is not known."""
    unknown = np.full(len(entry["names"]), np.nan)
    return BlockStatistics(
        names=entry["names"],
        sizes=entry["sizes"],
        gradient_norms=entry["gradient_norms"],
        noise=unknown,
        top=entry["top"],
        bottom=entry["bottom"],
        trace=unknown,
        trace_error=unknown,
        nodes=entry["nodes"],
        weights=tuple(np.array(w) / math.fsum(w) for w in entry["weights"]),  # they were rounded
        density_error=unknown,
        exact=np.zeros(unknown.size, dtype=bool),
        leakage=entry["leakage"],
        leakage_error=math.nan,
        loss=entry["loss"],
        batches=1,
        meta={"name": entry["model"]},
    )


def mean_distance(distances: FloatArray, chosen: Sequence[int] | None = None) -> float:
    """Return the mean over the pairs of blocks, of some of the blocks if chosen."""
    inner = distances if chosen is None else distances[np.ix_(chosen, chosen)]
    return float(inner[np.triu_indices(len(inner), 1)].mean())


def gap_of(slow: int | None, fast: int | None, cap: int) -> tuple[float, bool] | None:
    """Return the ratio of two counts, and whether it is only a lower value (the first one capped)."""
    return None if not fast else ((cap if slow is None else slow) / fast, slow is None)


def pairs(record: dict[str, Any], kind: str = "training") -> list[dict[str, Any]]:
    """Return one row a pair: predictions and the real gap, medians over the seeds that have both.

    Parameters
    ----------
    record : dict
        As of `recorded`.
    kind : str
        "training" (full batch) or "minibatch".

    Returns
    -------
    list of dict
        "model", "depth", "seeds", "gap" and the keys of `PREDICTIONS`, "censored" (the gap is a lower value)
        and "at_edge" (a best learning rate was an end of its grid).
    """
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for trained in select(record, kind):
        model, depth, seed = trained["model"], trained["depth"], trained["seed"]
        measured, replayed = (
            record["units"].get(f"{other}-{model}-{depth}-{seed}") for other in ("blocks", "replay")
        )
        counts = {name: trained["optimizers"][name]["iterations"] for name in ("sgd", "adam")}
        real = gap_of(counts["sgd"], counts["adam"], record["cap"])
        if measured is None or replayed is None or real is None:
            continue
        drawn = zip(replayed["counts"]["gd"], replayed["counts"]["adam"], strict=True)
        predicted = [gap for gap in (gap_of(gd, adam, CAP_REPLAYED) for gd, adam in drawn) if gap]
        if not predicted:
            continue
        row = {
            "gap": real[0],
            "censored": real[1],
            "at_edge": any(trained["optimizers"][name]["at_edge"] for name in ("sgd", "adam")),
            "replayed": stats.median(gap for gap, _ in predicted),
            "lambda_ratio": measured["lambda_g"] / measured["lambda_p"],
            "mean_jensen_shannon": mean_distance(density_distances(block_statistics(measured))[1]),
        }
        groups.setdefault((model, depth), []).append(row)
    return [
        {
            "model": model,
            "depth": depth,
            "seeds": len(rows),
            **{key: _number(stats.median(row[key] for row in rows)) for key in ("gap", *PREDICTIONS)},
            **{key: any(row[key] for row in rows) for key in ("censored", "at_edge")},
        }
        for (model, depth), rows in groups.items()
    ]


def rank_correlation(x: ArrayLike, y: ArrayLike, draws: int = 5000, seed: int = 0) -> dict[str, Any]:
    r"""Return Spearman's correlation, its bootstrap interval and the p-value of a permutation test.

    Parameters
    ----------
    x, y : array_like, shape (n,)
        At least three pairs.
    draws : int
        Of the bootstrap (resampled pairs; those in which a side is constant are left out) and permutations.
    seed : int

    Returns
    -------
    dict
        "n", "rho" (None where a side is constant), "low" and "high" (2.5 and 97.5 per cent), "p" (two-sided).

    Raises
    ------
    ValueError
        If the lengths differ or are below three.

    Examples
    --------
    >>> found = rank_correlation(range(10), [v**3 for v in range(10)])
    >>> found["rho"], found["low"], found["p"] < 0.01
    (1.0, 1.0, True)
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or a.size < 3:
        raise ValueError(f"x and y must be n >= 3 numbers each, received {shown(x)} and {shown(y)}")
    rng = np.random.default_rng(seed)
    rho = float(_spearman(a, b))
    if math.isnan(rho):
        return {"n": a.size, "rho": None, "low": None, "high": None, "p": None}
    drawn = rng.integers(0, a.size, (draws, a.size))
    low, high = np.nanpercentile(_spearman(a[drawn], b[drawn]), [2.5, 97.5])
    permuted = rng.permuted(np.broadcast_to(b, (draws, b.size)), axis=1)
    p = (1 + np.count_nonzero(np.abs(_spearman(a, permuted)) >= abs(rho) - 1e-12)) / (draws + 1)
    return {"n": a.size, "rho": _number(rho), "low": _number(low), "high": _number(high), "p": _number(p)}


def _spearman(x: FloatArray, y: FloatArray) -> Any:
    """Return Spearman's correlation along the last axis; NaN where a side is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(v, axis=-1) - (v.shape[-1] + 1) / 2 for v in (x, y))
    norms = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / norms


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is missing, and record everything: ``python -m quadlab.bridge.study``."""
    parser = argparse.ArgumentParser(description="Measure, train, and record what the figures draw from.")
    parser.add_argument("--store", type=Path, default=Path("build/bridge"), help="folder of the units")
    parser.add_argument("--out", type=Path, default=Path("quadlab/recorded/bridge.json"), help="the record")
    parser.add_argument("--workers", type=int, default=1, help="processes; default 1")
    options = parser.parse_args(arguments)
    run(units(), options.store, options.workers)
    run(replays(), options.store, options.workers)
    record(units() + replays(), options.store, options.out)


def record(tasks: Sequence[Unit], store: Path, out: Path) -> None:
    """Write what is in the folder of the units to one file, a line a unit."""
    content = collect(tasks, store)
    entries = content.pop("units")
    dump = functools.partial(json.dumps, allow_nan=False, separators=(",", ":"))
    lines = ",\n".join(f"{dump(key)}:{dump(entry)}" for key, entry in entries.items())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(f'{dump(content)[:-1]},\n"units":{{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main()
