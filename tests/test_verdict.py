"""The rounding rules and the verdict, rule by rule."""

from __future__ import annotations

import math

import pytest

from quadlab.bounds.verdict import (
    EQUALITY_SLACK,
    allowed_iterations,
    constant_error,
    first_index,
    judge_count,
    judge_statistic,
    near_tie,
    ratio_error,
    required_iterations,
    rounding_error,
)


def count(form, value, iterations, kind="upper", converged=True, **options):
    return judge_count(kind, form, value, iterations=iterations, converged=converged, **options)


@pytest.mark.parametrize(
    ("form", "value", "expected"),
    [
        ("strict", 0.0, 0),
        ("strict", 0.99, 0),
        ("strict", 1.0 - 0.5e-9, 1),
        ("strict", 1.0 - 2e-9, 0),
        ("strict", 7.9, 7),
        ("strict", -3.0, 0),
        ("strict", math.inf, math.inf),
        ("log", 0.0, 1),
        ("log", 0.5, 1),
        ("log", 1.0, 2),
        ("log", 1.0 - 2e-9, 1),
        ("log", 1.0 - 0.5e-9, 2),
        ("log", 1e6 - 2e-3, 1e6),
        ("log", 1e6 - 0.5e-3, 1e6 + 1),
        ("log", math.inf, math.inf),
        ("equality", 5.0, 5),
        ("equality", 5.0 * (1 - 0.5e-12), 5),
        ("equality", 5.0 * (1 - 2e-12), 4),
    ],
)
def test_allowed(form, value, expected):
    assert allowed_iterations(form, value) == expected


def test_allowed_at_the_start():
    assert allowed_iterations("log", 9.0, holds_at_start=True) == 0
    assert allowed_iterations("strict", 9.0, holds_at_start=True) == 9


@pytest.mark.parametrize(
    ("form", "value", "expected"),
    [
        ("strict", 5.0, 5),
        ("strict", 5.0 + 2.5e-9, 5),
        ("strict", 5.0 + 1e-8, 6),
        ("log", 0.3, 1),
        ("equality", 5.0 + 1e-11, 6),
        ("equality", 5.0 + 1e-12, 5),
        ("strict", -1.0, 0),
        ("strict", math.inf, math.inf),
    ],
)
def test_required(form, value, expected):
    assert required_iterations(form, value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(-0.5, 0), (0.0, 1), (2.5, 3), (3.0, 4), (3.0 - 2e-8, 3), (math.inf, math.inf)]
)
def test_first_index(value, expected):
    assert first_index(value) == expected


@pytest.mark.parametrize(
    ("iterations", "converged", "diverged", "expected"),
    [
        (9, True, False, True),  # T = 9 < N = 9.5
        (10, True, False, False),
        (0, True, False, True),
        (8, False, False, None),  # cut short before N
        (9, False, False, False),  # the test failed after 9 updates: T >= 10
        (100, False, False, False),
        (3, False, True, False),  # diverged at any t
    ],
)
def test_upper(iterations, converged, diverged, expected):
    assert count("strict", 9.5, iterations, converged=converged, diverged=diverged) is expected


def test_upper_of_infinity_claims_nothing():
    assert count("strict", math.inf, 10**6) is True
    assert count("strict", math.inf, 10**6, converged=False) is None
    assert count("strict", math.inf, 5, converged=False, diverged=True) is None
    assert count("strict", math.nan, 5) is None


def test_a_posteriori_needs_a_count():
    assert count("strict", 1.0, 50, converged=False, a_posteriori=True) is None
    assert count("strict", 1.0, 50, converged=False, diverged=True, a_posteriori=True) is None
    assert count("strict", 1.0, 50, a_posteriori=True) is False


def test_log_form_at_the_start():
    assert count("log", 0.0, 0) is True
    assert count("log", 0.0, 1) is True  # the index 0 may be unstopped
    assert count("log", 0.0, 2) is False


@pytest.mark.parametrize(
    ("iterations", "converged", "diverged", "expected"),
    [
        (9, True, False, False),
        (10, True, False, True),
        (9, False, False, True),  # unstopped after 9 updates: T >= 10
        (8, False, False, None),
        (2, False, True, True),  # it never stops
    ],
)
def test_lower(iterations, converged, diverged, expected):
    assert count("strict", 9.5, iterations, "lower", converged, diverged=diverged) is expected


@pytest.mark.parametrize(
    ("iterations", "converged", "diverged", "near", "expected"),
    [
        (10, True, False, (10, 10), True),
        (11, True, False, (10, 10), False),
        (11, True, False, (10, 11), None),  # a near tie
        (12, True, False, (10, 11), False),
        (9, False, False, (10, 10), None),
        (10, False, False, (10, 10), False),
        (10, False, False, (10, 11), None),
        (10, False, False, (10, math.inf), None),
        (3, False, True, (10, 10), False),
    ],
)
def test_exact(iterations, converged, diverged, near, expected):
    verdict = count("equality", 10.0, iterations, "exact", converged, diverged=diverged, near=lambda: near)
    assert verdict is expected


def test_exact_never():
    assert count("equality", math.inf, 10**6, "exact", False) is None
    assert count("equality", math.inf, 10**6, "exact", False, diverged=True) is None
    assert count("equality", math.inf, 10, "exact", True) is False


def test_a_tolerance_below_rounding_contradicts_nothing():
    assert count("strict", 5.0, 9, resolved=lambda: False) is None
    assert count("strict", 5.0, 9, resolved=lambda: True) is False
    assert count("strict", 5.0, 4, resolved=lambda: False) is True


@pytest.mark.parametrize(
    ("kind", "measured", "expected"),
    [
        ("upper", 2.0, True),
        ("upper", 2.0 * (1 + 0.5e-12), True),
        ("upper", 2.0 * (1 + 2e-12), False),
        ("lower", 2.0 * (1 - 0.5e-12), True),
        ("lower", 2.0 * (1 - 2e-12), False),
        ("lower", math.inf, None),
        ("upper", math.inf, False),
        ("exact", 2.0, True),
        ("exact", 2.0 * (1 + 2e-12), False),
        ("exact", 2.0 * (1 - 2e-12), False),
        ("upper", None, None),
        ("upper", math.nan, None),
    ],
)
def test_statistic(kind, measured, expected):
    assert judge_statistic(kind, 2.0, measured) is expected


def test_statistic_error_widens_only():
    assert judge_statistic("upper", 2.0, 2.1, error=0.2) is True
    assert judge_statistic("upper", 2.0, 2.3, error=0.2) is False
    assert judge_statistic("upper", 2.0, 2.0 * (1 + 0.5 * EQUALITY_SLACK), error=0.0) is True
    assert judge_statistic("upper", math.inf, 5.0) is True
    assert judge_statistic("lower", math.inf, 5.0) is False
    assert judge_statistic("upper", math.nan, 5.0) is None


def test_errors_scale_as_they_should():
    assert rounding_error("l1", 4, 1.0, 1.0) == 2 * rounding_error("l2", 4, 1.0, 1.0)
    assert rounding_error("gap", 4, 1.0, 10.0) == pytest.approx(100 * rounding_error("gap", 4, 1.0, 1.0))
    assert near_tie(0.0) == 1e-6
    assert ratio_error(4, 1.0, 0.0, 1.0) < 1e-12 < ratio_error(4, 1e4, 0.0, 1.0) < 1e-10
    assert constant_error(4, 10.0) < 1e-12
