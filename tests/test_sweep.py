"""Grids, seeds, the store's refusals, failed runs and the table."""

from __future__ import annotations

import csv
import itertools
import json
import math
import sqlite3
import sys

import numpy as np
import pytest

import quadlab as ql
from quadlab.cli import main
from quadlab.sweep import configuration, engines, estimate, read_grid, sweep
from quadlab.sweep.configuration import (
    block_family,
    build_problem,
    build_problems,
    build_setting,
    seed_of,
)
from quadlab.sweep.grid import SCHEMA, canonical
from quadlab.sweep.store import STORE_SCHEMA, Store
from sweep_helpers import Lion, late, scaled
from sweep_kills import content, stored

SMALL = {"case": ["het", "hom"], "method": ["gd:lambda_g", "signsgd:lambda_p"], "eps": 1e-2, "seed": range(5)}
SMALL_FAMILY = {name: SMALL[name] for name in ("method", "eps", "seed")}
ONE = {"case": "het", "method": "gd:lambda_g", "eps": 1e-2}


def by_configuration(table):
    grid = table.grid
    return {grid.config_json(k): row for k, row in enumerate(content(table))}


# -- grids ---------------------------------------------------------------------------------------------------


def test_sections_multiply_and_zips_move_together():
    grid = read_grid(
        {
            "fixed": {"eps": 1e-3, "sizes": [2, 2], "spectra": {"LogUniform": [1, 10]}},
            "product": {"basis": ["axis", "haar"], "seed": range(3)},
            "zip": [{"method": ["gd", "adam"], "learning_rate": ["lambda_g", 0.01]}],
            "list": [{"stop": "l1"}, {"stop": "gap", "relative": True}],
        }
    )
    assert grid.dims == {"basis": 2, "seed": 3, "method": 2, "list": 2}
    assert len(grid) == 24
    assert len(grid.problems) == 6
    assert grid.configuration(23) == {
        "basis": "haar", "eps": 0.001, "learning_rate": 0.01, "method": "adam", "relative": True, "seed": 2,
        "sizes": [2, 2], "spectra": {"LogUniform": [1, 10]}, "stop": "gap",
    }  # fmt: skip


def test_a_union_holds_each_run_once():
    grid = read_grid([SMALL, {**SMALL, "seed": range(3, 8)}])
    assert len(grid) == 2 * 2 * 8
    assert grid.dims == {"run": 32}


def test_toml_and_python_name_the_same_runs(tmp_path):
    spec = tmp_path / "spec.toml"
    spec.write_text(
        """
        [fixed]
        eps = 1e-2
        [product]
        case = ["het", "hom"]
        method = ["gd:lambda_g", { adam = { learning_rate = 0.01, beta1 = 0 } }]
        seed = { range = 5 }
        """
    )
    python = {
        "case": ["het", "hom"], "method": [ql.GD("lambda_g"), ql.Adam(np.float64(0.01), beta1=0.0)],
        "eps": 0.01, "seed": np.arange(5),
    }  # fmt: skip
    assert read_grid(spec).keys == read_grid(str(spec)).keys == read_grid(python).keys


def test_ranges():
    grid = read_grid({**ONE, "eps": {"log": [1e-4, 1, 5]}, "seed": {"range": [2, 8, 2]}})
    assert [grid.configuration(3 * k)["eps"] for k in range(5)] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert [grid.configuration(k)["seed"] for k in range(3)] == [2, 4, 6]


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        ({"case": "het", "eps": 1}, "needs method"),
        ({"case": "het", "method": "gd:lambda_g"}, "needs eps"),
        ({"method": "gd:lambda_g", "eps": 1}, "received none"),
        ({**ONE, "condition_number": 10}, "received case and condition_number"),
        ({**ONE, "metod": "gd"}, "axis 'metod' is none of"),
        ({**ONE, "case": ["het", "het"]}, "same value twice"),
        ({**ONE, "case": []}, "axis case is empty"),
        ([], "received none"),
        (3, "received 3"),
        ({"product": ONE, "zipp": {}}, "'zipp'"),
        ({"fixed": 3}, "received 3"),
        ({"product": {**ONE, "learning_rate": [1]}}, "learning_rate is set twice, by method and by"),
        ({"product": ONE, "zip": {"seed": [1, 2], "momentum": [1]}}, "seed 2, momentum 1"),
        ({**ONE, "method": "gdd:1"}, "and 'gdd:1' cannot be imported"),
        ({**ONE, "method": "nowhere:Lion"}, "'nowhere:Lion' cannot be imported"),
        ({**ONE, "method": "gd:1:momentum"}, "received 'momentum'"),
        ({**ONE, "method": 3}, "received 3"),
        ({**ONE, "method": "gd"}, "'gd' needs a learning_rate"),
        ({**ONE, "method": "gd:1:beta1=0"}, "'gd': got an unexpected keyword argument 'beta1'"),
        ({**ONE, "method": "gd:m_star"}, "'m_star' does not go with GD"),
        ({**ONE, "method": ql.GD(lambda t: 1.0)}, "learning_rate must be plain data"),
        ({**ONE, "eps": -1}, "received -1"),
        ({**ONE, "eps": math.nan}, "eps must be finite, received nan"),
        ({**ONE, "stop": "l3"}, "received 'l3'"),
        ({**ONE, "max_iterations": -1}, "received -1"),
        ({**ONE, "statistics": ["sup_lambda"]}, "received 'sup_lambda'"),
        ({**ONE, "case": "het2"}, "received 'het2'"),
        ({**ONE, "noise": -0.1}, "noise must be a finite number >= 0, received -0.1"),
        ({**ONE, "noise": [[]]}, "noise must be a number"),
        ({**ONE, "noise": 1, "noise_law": "cauchy"}, "law must be one of gaussian, uniform"),
        ({**ONE, "noise": 1, "batch": 0}, "batch must be an integer >= 1, received 0"),
        ({**ONE, "batch": 4}, "a noise_law or batch needs noise, received {'batch': 4}"),
        ({**ONE, "basis": {"Rotate": [1]}}, "received {'Rotate': [1]}"),
        ({**ONE, "basis": {"Rotation": [1, 2]}}, "Rotation: "),
        ({**ONE, "basis": "haar", "rotation": 1}, "rotation is a basis"),
        ({**ONE, "sizes": [4]}, "size 4 was asked of a list of 3"),
        ({**ONE, "seed": {"range": ["a"]}}, "axis seed: range ['a']"),
        ({**ONE, "start": object()}, "start must be plain data"),
        ({"problem": "none.npz", "method": "gd:lambda_g", "eps": 1}, "'none.npz' cannot be read"),
        ({"problem": "math:hypot", "method": "gd:lambda_g", "eps": 1}, "no source"),
    ],
)
def test_a_malformed_grid_is_one_line_before_anything_runs(grid, told, tmp_path):
    path = tmp_path / "s.sqlite"
    with pytest.raises(ValueError) as caught:
        sweep(grid, path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not path.exists() or not stored(path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"condition_number": 0.5}, "condition_number must be a number from 1 to inf, received 0.5"),
        ({"hessian_spread": 11}, "hessian_spread must be a number from 1 to 10, received 11"),
        ({"correlation": 2, "gradient_spread": 2}, "received 2"),
        ({"correlation": 0}, "needs gradient_spread"),
        ({"blocks": 2, "correlation": 0.5, "gradient_spread": 2}, "needs 3 blocks or more, received 2"),
        ({"blocks": 0}, "received 0"),
        ({"blocks": None}, "sizes must be a list"),
    ],
)
def test_block_family_refuses(changes, told):
    with pytest.raises(ValueError, match=told):
        block_family(**{"condition_number": 10, "sizes": 3, "blocks": 4, "seed": 0, **changes})


@pytest.mark.parametrize("correlation", [-0.3, 1])
def test_block_family_of_several_seeds(correlation):
    options = {"sizes": 2, "blocks": 5, "gradient_spread": 3, "correlation": correlation}
    for seeds in ([3, 0, 3], range(2), np.array([7]), []):
        problems = block_family(100, seed=seeds, **options)
        assert problems == [block_family(100, seed=int(seed), **options) for seed in seeds]
    assert block_family(100, seed=None, **options) != block_family(100, seed=None, **options)
    for wrong in ("12", [[1, 2]], 2.5, -1, [1, -1], {1: 2}):
        with pytest.raises(ValueError, match=r"seed must be an integer >= 0 or None, received"):
            block_family(100, seed=wrong, **options)


@pytest.mark.parametrize("spread", [1.0, 7.0, 100.0])
@pytest.mark.parametrize("correlation", [-1, -0.3, 0, 0.8, 1])
def test_block_family_is_what_it_says(spread, correlation):
    p = block_family(
        100.0, sizes=5, blocks=6, hessian_spread=spread, gradient_spread=50, correlation=correlation, seed=3
    )
    values = np.concatenate([block.eigenvalues for block in p.blocks])
    norms = np.array([block.norm for block in p.blocks])
    gradients = np.array([np.linalg.norm(g) for g in p.split(p.gradient(p.start))])
    assert values.min() == pytest.approx(1.0 if spread < 100 else values.min(), rel=1e-12)
    assert values.max() == 100.0
    assert norms.max() / norms.min() == pytest.approx(spread)
    assert np.log(gradients).std() == pytest.approx(np.linspace(0, np.log(50), 6).std())
    if spread > 1:
        assert np.corrcoef(np.log(norms), np.log(gradients))[0, 1] == pytest.approx(correlation, abs=1e-9)


# -- seeds ---------------------------------------------------------------------------------------------------


def test_another_value_on_an_axis_changes_no_other_run():
    before = by_configuration(sweep(SMALL))
    more = {
        **SMALL,
        "case": ["het-axis", "het", "hom"],
        "method": [*SMALL["method"], "adam:0.1"],
        "seed": range(7),
    }
    after = by_configuration(sweep({**more, "max_iterations": 10**6})) | by_configuration(sweep(more))
    assert before.keys() < after.keys()
    assert all(after[key] == row for key, row in before.items())


def test_methods_meet_the_same_problems():
    table = sweep({**SMALL, "stop": ["l1", "gap"]})
    assert len(table.grid.problems) == 10
    initial = table.array("initial_grad_l1")[..., 0]  # case, method, seed
    assert (initial[:, 0] == initial[:, 1]).all()
    assert len(np.unique(initial)) == 10


def test_a_run_is_that_of_solve_on_its_problem():
    table = sweep({**SMALL, "method": ["gd:lambda_g", Lion(0.1, beta1=0.8)], "max_iterations": 300})
    for k in range(0, len(table), 3):
        setting = build_setting(table.grid.settings[table.grid.setting_of[k]])
        run = ql.solve(table.problem(k), setting.method, setting.stop, max_iterations=300)
        assert (table["status"][k], table["iterations"][k]) == (run.status, run.iterations)
        assert table["final_grad_l1"][k] == run.final["grad_l1"]


def test_all_numbers_of_a_run_are_those_of_solve():
    fixed = {"max_iterations": 60, "seed": 7}
    axes = {
        "case": ["het", "hom-axis"],
        "stop": [ql.GradientNorm(1e-2), ql.Gap(1e-3, relative=True)],
        "statistics": [[], sorted(ql.run.STATISTICS), ["sup_lambda_g", "gradient_weighted"]],
    }
    rules = ["gd:lambda_g", "gd:optimal", "signsgd:m_star", "gd:10"]
    adam = {"adam": {"learning_rate": {"cosine": [0.01, 50]}}}
    table = sweep([
        {"fixed": fixed, "product": {**axes, "method": rules}},
        {"fixed": fixed, "product": {**axes, "method": ["gd:1e-4", adam], "noise": [0, 0.5]}},
    ])  # fmt: skip
    assert set(table.statuses) == {"converged", "max_iterations", "diverged"}
    known = {"status", "error", "seconds"}.union(*map(json.loads, table.grid.settings))
    for k in range(len(table)):
        setting = build_setting(table.grid.settings[table.grid.setting_of[k]])
        half = table.grid.problems[table.grid.problem_of[k]]
        run = ql.solve(
            table.problem(k), setting.method, setting.stop, max_iterations=60,
            statistics=setting.statistics, noise_seed=seed_of(half),
        )  # fmt: skip
        expected = {
            "iterations": run.iterations, "tolerance": run.tolerance,
            "resolved_learning_rate": run.learning_rate,
            **{f"initial_{name}": value for name, value in run.initial.items()},
            **{f"final_{name}": value for name, value in run.final.items()},
            **run.statistics,
        }  # fmt: skip
        if setting.problem_statistics:
            expected["gradient_weighted"] = ql.gradient_weighted(run.problem)
        assert table["status"][k] == run.status
        for name in set(table.names) - known - set(json.loads(half)):
            value = expected.get(name)
            finite = value is not None and math.isfinite(value)
            assert table[name][k] == value if finite else np.isnan(table[name][k]), (k, name)


def test_problems_from_functions_and_files(tmp_path):
    table = sweep(
        {
            "problem": scaled,
            "scale": [3, 5],
            "method": "gd:optimal",
            "eps": 1e-3,
            "seed": [0, 1],
        }
    )
    assert [table.problem(k).blocks[1].norm for k in range(4)] == [3, 3, 5, 5]
    assert table["resolved_learning_rate"].tolist() == [0.5, 0.5, 1 / 3, 1 / 3]
    file = tmp_path / "p.npz"
    ql.case("het", seed=3).save(file)
    grid = {"problem": str(file), "method": ["gd:lambda_g", "signsgd:lambda_p"], "eps": 1e-3}
    table, keys = sweep(grid), read_grid(grid).keys
    assert table.problem(0) == ql.case("het", seed=3)
    ql.case("het", seed=4).save(file)
    assert not set(read_grid(grid).keys) & set(keys)
    with pytest.raises(ValueError, match="another one here than where the sweep began"):
        table.problem(0)


def test_schedules_and_laws():
    grid = {
        "fixed": {"eps": 1e-2, "relative": True, "max_iterations": 500, "sizes": [3, 4]},
        "product": {
            "spectra": [ql.LogUniform(1, 10), {"PowerLaw": [10, 1]}, [[1, 2, 3], [4, 5, 6, 7]]],
            "basis": [ql.Rotation(0.3), {"Householder": 2}, "haar"],
            "method": [{"gd": {"learning_rate": {"cosine": [0.1, 400]}}}],
            "seed": range(8),
        },
    }
    grid["product"]["spectra"].pop()
    table = sweep(grid)
    assert table.statuses == {"converged": 48}


def test_seed_is_that_of_the_problem_alone():
    problem = '{"case":"het","seed":1}'
    assert build_problem(problem) == ql.case("het", seed=seed_of(problem))


DRAWN = {"LogUniform": {"high": 9, "low": 1, "random": True}}
SPREAD = {"blocks": 4, "condition_number": 9, "correlation": 0.5, "gradient_spread": 2, "sizes": 2}
# Where the eigenvalue drawn is below 0.56, the start overflows.
OVERFLOW = {"gradient_norms": 1e308, "sizes": [1], "spectra": [{"LogUniform": [0.1, 10, True]}]}
USERS = {**configuration.expand("problem", scaled), "seed": 1}
HALVES: dict[str, list[dict]] = {
    "seeds": [{"case": "het", "seed": k} for k in range(300)],
    "blocks": [{"blocks": 2, "condition_number": 9, "seed": k, "sizes": 1 + k // 3} for k in range(30)],
    "correlation": [{**SPREAD, "gradient_spread": 2 + k // 5, "seed": k} for k in range(10)],
    "no seed": [{"case": "het", "noise": k} for k in range(3)],
    "odd seeds": [{"case": "het", "seed": seed} for seed in ("a,b", "c,b", [1, 2], None, {"seed": 1})],
    "spectra": [{"basis": "haar", "seed": k, "sizes": [3], "spectra": [DRAWN]} for k in range(9)],
    "some wrong": [{"case": "het", "noise": 1 - 2 * (k in (4, 5)), "seed": k} for k in range(9)],
    "all wrong": [{"case": "het", "seed": k, "start": [1]} for k in range(3)],
    "wrong by seed": [{**OVERFLOW, "seed": k} for k in range(30)],
    "a user's": [{**USERS, "scale": scale} for scale in (1, 2)],
    "an edited one": [{**USERS, "problem_digest": "?", "scale": 1}, {"case": "het", "seed": 1}],
}


@pytest.mark.parametrize("what", HALVES)
def test_problems_made_together_are_those_made_alone(what):
    texts = list(map(canonical, HALVES[what]))
    texts += ["{", texts[0]]
    for text, made in zip(texts, build_problems(texts), strict=True):
        try:
            alone = build_problem(text)
        except Exception as error:
            assert (type(made), str(made)) == (type(error), str(error))
        else:
            assert made == alone


@pytest.mark.parametrize("own", [{}, {"seed": 5}])
def test_a_seed_within_a_table_is_not_that_of_the_problem(monkeypatch, own):
    """To cut out the first seed in these texts leaves them equal, but they are four problems."""
    texts = [canonical({"name": {"seed": k}, "spectra": [[1, 2]], **own}) for k in range(4)]
    monkeypatch.setattr(configuration, "decode", lambda value: str(value) if type(value) is dict else value)
    assert [p.name for p in build_problems(texts)] == [f"{{'seed': {k}}}" for k in range(4)]


def test_a_users_problem_is_made_when_it_is_asked_for(tmp_path):
    flag = tmp_path / "flag"
    options = {"index": 2, "path": str(flag), **configuration.expand("problem", late)}
    problems = build_problems([canonical({**options, "seed": k}) for k in range(4)])
    for there in (True, False, True, False):
        flag.touch() if there else flag.unlink()
        assert isinstance(next(problems), ql.BlockQuadratic if there else RuntimeError)


# -- failed runs ---------------------------------------------------------------------------------------------


def test_a_failed_run_is_stored_as_failed_and_retried_on_request(tmp_path):
    path, flag = tmp_path / "s.sqlite", tmp_path / "flag"
    grid = {
        "fixed": {"problem": "sweep_helpers:late", "path": str(flag), "eps": 1},
        "product": {"index": [1, 2, 3], "method": ["gd:lambda_g", "signsgd:lambda_p"]},
    }
    table = sweep(grid, path)
    assert table.statuses == {"converged": 4, "failed": 2}
    assert np.isnan(table.array("iterations")[1]).all()
    assert table.array("error")[1].tolist() == ["RuntimeError: not yet"] * 2
    flag.touch()
    assert sweep(grid, path).statuses == {"converged": 4, "failed": 2}
    before = stored(path)
    table = sweep(grid, path, retry_failed=True)
    assert table.statuses == {"converged": 6}
    assert sum(stored(path)[key] == row for key, row in before.items()) == 4


def test_one_run_of_a_pack_fails_alone():
    """frozen Adam refuses a start with a zero gradient, which only running it tells."""
    grid = {
        "fixed": {"spectra": [[1, 2], [3]], "eps": 1e-3, "method": "frozen_adam:0.1", "max_iterations": 100},
        "product": {"start": [[1, 1, 1], [1, 0, 1], [2, 1, 1]]},
    }
    table = sweep(grid)
    assert table["status"].tolist()[1] == "failed"
    assert "nonzero" in table["error"][1]
    assert "failed" not in table["status"].tolist()[::2]
    unknown = sweep({"problem": "sweep_helpers:scaled", "scal": 1, "method": "gd:1", "eps": 1})
    assert "missing a required argument: 'scale'" in unknown["error"][0]
    mixed = {
        "problem": "sweep_helpers:sometimes_malformed",
        "index": range(1, 9),
        "method": "gd:1e-4",
        "eps": 1,
    }
    assert sweep(mixed).statuses["failed"] == 2


def test_a_censored_or_diverged_run_is_none_that_failed():
    table = sweep({**ONE, "method": ["gd:1e-6", "gd:1"], "max_iterations": 1000})
    assert table.statuses == {"diverged": 1, "max_iterations": 1}
    assert table["iterations"][0] == 1000
    assert np.isnan(table["final_grad_l1"][1])
    json.dumps(list(table.rows()), allow_nan=False)


# -- the store -----------------------------------------------------------------------------------------------


def test_a_stored_run_is_not_run_again(tmp_path, monkeypatch):
    path = tmp_path / "s.sqlite"
    first = sweep(SMALL, path)
    monkeypatch.setattr(engines, "run_pack", None)
    again = sweep(SMALL, path)
    assert content(again) == content(first)
    assert again["seconds"].tolist() == first["seconds"].tolist()


def test_a_table_from_memory_is_the_table_of_the_file(tmp_path, monkeypatch):
    """Runs that this sweep wrote are not read back, and are to the bit what a later read gives."""
    path = tmp_path / "s.sqlite"
    reads = []
    real = Store.read
    monkeypatch.setattr(Store, "read", lambda store, keys: reads.append(real(store, keys)) or reads[-1])
    grid = {
        "problem": "sweep_helpers:sometimes_malformed",
        "index": range(1, 9),
        "method": ["gd:1e-4", "gd:1", "signsgd:lambda_p"],
        "eps": [1e-2, 1e6],
        "max_iterations": [0, 100],
        "statistics": ["sup_lambda_g", "parameter_weighted"],
    }
    first = sweep(grid, path)
    assert len(reads) == 1  # what was there before
    assert set(first.statuses) == {"converged", "diverged", "failed", "max_iterations"}
    again = sweep(grid, path)
    assert [repr(row) for row in again.rows()] == [repr(row) for row in first.rows()]
    assert sweep(grid).names == first.names


def test_runs_that_another_sweep_stored_meanwhile_are_read(tmp_path, monkeypatch):
    """The one that came first is kept: the table tells its rows, and the store holds each run once."""
    path = tmp_path / "s.sqlite"
    real, others = engines.run_pack, []

    def overtaken(*arguments):
        if not others:
            others.append(None)
            others[0] = sweep(SMALL, path)
        return real(*arguments)

    monkeypatch.setattr(engines, "run_pack", overtaken)
    table = sweep(SMALL, path)
    assert list(table.rows()) == list(others[0].rows())  # wall times too
    assert len(stored(path)) == len(table)


def test_rows_come_in_the_order_of_the_index_and_structures_in_a_row(tmp_path):
    path = tmp_path / "s.sqlite"
    sweep({"blocks": 2, "sizes": 1, "condition_number": [10, 100, 1000], **SMALL_FAMILY}, path)
    with Store(path, write=False)._db as connection:
        rows = connection.execute("SELECT key, config FROM runs ORDER BY rowid").fetchall()
    problems = [key[:32] for key, _ in rows]
    assert problems == sorted(problems)
    conditions = [json.loads(config)["problem"]["condition_number"] for _, config in rows]
    assert [value for value, _ in itertools.groupby(conditions)] == list(dict.fromkeys(conditions))
    assert len(rows) == 3 * 2 * 5


def test_other_versions_are_other_runs(tmp_path, monkeypatch):
    path = tmp_path / "s.sqlite"
    sweep(ONE, path)
    from quadlab.sweep import grid

    versions = grid.versions()
    assert json.loads(versions).keys() == {"quadlab", "schema", "numpy", "scipy", "numba"}
    assert json.loads(versions)["schema"] == SCHEMA
    monkeypatch.setattr(grid, "versions", lambda: versions.replace('"numpy":"', '"numpy":"9'))
    sweep(ONE, path)
    assert len(stored(path)) == 2


def damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "garbage":
        data = bytearray(b"no database at all\n" * 100)
    elif kind == "short":
        data = data[:50]
    elif kind == "truncated":
        data = data[: len(data) // 2 // 4096 * 4096]
    elif kind == "zeroed page":
        data[2 * 4096 : 3 * 4096] = bytes(4096)
    elif kind == "random page":
        data[3 * 4096 : 4 * 4096] = np.random.default_rng(0).bytes(4096)
    elif kind == "value":
        data[data.index(b"tolerance") + len("tolerance")] ^= 1  # the numbers follow their names
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["garbage", "short", "truncated", "zeroed page", "random page", "value"])
def test_a_damaged_store_is_refused_and_left_untouched(tmp_path, kind):
    path = tmp_path / "s.sqlite"
    sweep({**SMALL, "seed": range(30)}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["s.sqlite"]
    damage(path, kind)
    before = path.read_bytes()
    for attempt in (lambda: sweep({**SMALL, "seed": range(30)}, path), lambda: sweep(ONE, path)):
        if kind == "value" and attempt.__code__.co_names == ("sweep", "ONE"):
            continue  # a run that is not asked for is not read
        with pytest.raises(ValueError, match=r"damaged|no SQLite file") as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["schema", "other database"])
def test_a_store_of_another_kind_is_refused_and_left_untouched(tmp_path, kind):
    path = tmp_path / "s.sqlite"
    if kind == "schema":
        sweep(ONE, path)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.execute(f"PRAGMA user_version = {STORE_SCHEMA + 1}")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    schemas = f"has schema {STORE_SCHEMA + 1}, quadlab reads {STORE_SCHEMA}"
    told = schemas if kind == "schema" else "no store of a sweep"
    for call in (sweep, estimate):
        with pytest.raises(ValueError, match=told):
            call(ONE, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.sqlite"]


def test_a_store_that_cannot_be_written(tmp_path):
    with pytest.raises(OSError, match="no folder"):
        sweep(ONE, tmp_path / "nowhere" / "s.sqlite")
    with pytest.raises(OSError):
        sweep(ONE, tmp_path)


# -- table, estimate, command line ---------------------------------------------------------------------------


def test_table(tmp_path):
    table = sweep({**SMALL, "statistics": ["sup_lambda_g", "gradient_weighted"]})
    assert table.axes == {"case": 2, "method": 2, "seed": 5}
    assert table.array("iterations").dtype == np.int64
    assert table.names[:6] == ["case", "seed", "eps", "learning_rate", "method", "statistics"]
    assert table["learning_rate"].tolist()[::5] == ["lambda_g", "lambda_p"] * 2
    table.to_csv(tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [int(row["iterations"]) for row in rows] == table["iterations"].tolist()
    assert [float(row["sup_lambda_g"]) for row in rows] == table["sup_lambda_g"].tolist()
    assert table.to_csv() == (tmp_path / "t.csv").read_text()
    assert "<table>" in table._repr_html_()
    with pytest.raises(ValueError, match="received 'nonsense'"):
        table["nonsense"]


def test_xarray():
    pytest.importorskip("xarray")
    data = sweep({**SMALL, "method": ["gd:lambda_g", "adam:0.01", "adam:0.1"]}).to_xarray()
    assert dict(data.sizes) == {"case": 2, "method": 3, "seed": 5}
    assert data["learning_rate"].values.tolist() == ["lambda_g", 0.01, 0.1]
    assert data["iterations"].sel(case="hom", seed=3).shape == (3,)
    assert "method" not in data.indexes  # two adams are no index
    assert data["eps"].item() == 0.01
    union = sweep([SMALL, ONE]).to_xarray()
    assert dict(union.sizes) == {"run": 21}
    assert set(union["case"].values) == {"het", "hom"}


def test_importing_sweeps_needs_no_extra():
    import subprocess

    code = (
        "import sys; import quadlab.sweep\n"
        "quadlab.sweep({'case': 'het', 'method': 'gd:lambda_g', 'eps': 1})\n"
        "print([n for n in ('dask', 'distributed', 'pandas', 'xarray') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_estimate_makes_no_file(tmp_path):
    path = tmp_path / "s.sqlite"
    plan = estimate(SMALL, path)
    assert (plan.runs, plan.stored, plan.failed, plan.to_do) == (20, 0, 0, 20)
    assert plan.seconds > 0
    assert not list(tmp_path.iterdir())
    sweep({**SMALL, "seed": range(2)}, path)
    plan = estimate(SMALL, path, workers=4)
    assert (plan.stored, plan.to_do) == (8, 12)
    assert plan.seconds == pytest.approx(plan.seconds_per_run * 3)


SPEC = """
[product]
case = ["het", "hom"]
method = ["gd:lambda_g", "signsgd:lambda_p"]
eps = 1e-2
seed = { range = 5 }
"""


def test_command_line(tmp_path, capsys):
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC)
    assert main(["sweep", str(spec), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("20 runs: 0 stored, 0 failed, 20 to do, about ")
    assert main(["sweep", str(spec), "--csv", str(tmp_path / "t.csv")]) == 0
    out = capsys.readouterr().out
    assert (
        out == f"<Table: 20 runs (20 converged): case 2 x method 2 x seed 5> in {tmp_path / 'spec.sqlite'}\n"
    )
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 21
    assert main(["sweep", str(spec), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["statuses"] == {"converged": 20}
    assert [row["iterations"] for row in shown["runs"]] == sweep(SMALL)["iterations"].tolist()
    assert main(["sweep", str(spec), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["to_do"] == 0


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("case = ", [], "is not TOML"),
        (SPEC, ["--workers", "0"], "--workers must be >= 1, received 0"),
        (SPEC, ["--workers", "2", "--dask", "tcp://127.0.0.1:1"], "exclude each other"),
        (SPEC.replace("het", "hett"), [], "received 'hett'"),
    ],
)
def test_bad_input_at_the_command_line_is_one_line(tmp_path, capsys, text, options, told):
    spec = tmp_path / "spec.toml"
    spec.write_text(text)
    assert main(["sweep", str(spec), *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]


def test_a_missing_spec_is_one_line(capsys):
    assert main(["sweep", "nowhere.toml"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_failed_runs_give_status_one(tmp_path, capsys):
    spec = tmp_path / "spec.toml"
    spec.write_text(
        'problem = "sweep_helpers:sometimes_malformed"\nindex = [1, 2, 3]\nmethod = "gd:lambda_g"\neps = 1\n'
    )
    assert main(["sweep", str(spec)]) == 1
    assert "1 failed" in capsys.readouterr().out


# -- gradient noise ------------------------------------------------------------------------------------------


def test_noise_is_an_axis_on_which_problems_and_methods_are_paired(tmp_path):
    """The same start at every level, the same noise for every method, other noise for another replicate."""
    spec = {
        "product": {
            "noise": [0, 0.5, [0.1, 0.2, 0.3]],
            "noise_law": ["gaussian", "uniform"],
            "method": [{"signsgd": {"learning_rate": 0.01}}, "adam:0.01:beta1=0:beta2=0:epsilon=0"],
            "seed": range(6),
        },
        "fixed": {
            "case": "het",
            "eps": 1e-3,
            "max_iterations": 200,
            "batch": 4,
            "statistics": ["weighted_l1"],
        },
    }
    table = sweep(spec, store=tmp_path / "runs.sqlite", progress=False)
    assert len(table.grid.problems) == 6 and set(table.statuses) <= {"converged", "max_iterations"}
    sums = table.array("weighted_l1")  # noise, law, method, seed
    assert np.ptp(table.array("initial_grad_l1"), axis=(0, 1, 2)).max() == 0.0
    assert np.array_equal(sums[:, :, 0], sums[:, :, 1])
    assert np.array_equal(sums[0, 0], sums[0, 1]) and not np.array_equal(sums[1, 0], sums[1, 1])
    assert len(np.unique(sums[1])) == 2 * 6
    run = int(np.ravel_multi_index((2, 1, 0, 3), sums.shape))
    p = table.problem(run)
    seed = seed_of(table.grid.problems[table.grid.problem_of[run]])
    assert p == ql.case("het", seed=seed).with_noise([0.1, 0.2, 0.3], "uniform", batch=4)
    alone = ql.solve(
        p,
        ql.SignSGD(0.01),
        ql.GradientNorm(1e-3),
        max_iterations=200,
        statistics=["weighted_l1"],
        noise_seed=seed,
    )
    assert alone.statistics["weighted_l1"] == sums[2, 1, 0, 3]


def test_replicates_of_one_problem_differ_in_their_noise():
    fixed = {"spectra": [[1, 2]], "start": [1, 1], "noise": 0.1, "method": "signsgd:0.01", "eps": 0.1}
    spec = {"fixed": fixed, "product": {"seed": range(8)}}
    table = sweep(spec, progress=False)
    assert len(set(table["iterations"].tolist())) > 1


def test_noise_of_another_length_fails_alone():
    spec = {"case": "het", "noise": [[1, 2], 0.1], "method": "signsgd:0.01", "eps": 1, "max_iterations": 5}
    table = sweep(spec, progress=False)
    assert sorted(table["status"].tolist()) == ["failed", "max_iterations"]
    assert any("noise must be a number, 3" in str(error) for error in table["error"].tolist())
