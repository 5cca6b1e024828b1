"""Real training: the optimizers' updates, counts to a loss, the search for the best learning rate."""

from __future__ import annotations

import copy
import math

import pytest

torch = pytest.importorskip("torch")

from quadlab.bridge.models import workload  # noqa: E402
from quadlab.bridge.train import (  # noqa: E402
    OPTIMIZERS,
    SignSGD,
    TrainingRun,
    _search,
    train,
    train_at,
)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Parabola(torch.nn.Module):
    """f(w) = 1/2 sum_i lam_i w_i^2 from w = 1: GD's count to a loss is known."""

    def __init__(self, lam):
        super().__init__()
        self.lam = torch.tensor(lam, dtype=torch.float64)
        self.w = torch.nn.Parameter(torch.ones(len(lam), dtype=torch.float64))


def value(model, batch):
    return 0.5 * (model.lam * model.w**2).sum() * batch


UNIT = [torch.tensor(1.0, dtype=torch.float64)]


def small(name="mlp", **options):
    return workload(name, **{"depth": 1, "width": 8, "examples": 24, **options})


def test_sign_updates():
    for beta in (0.0, 0.9):
        w = torch.tensor([1.0, -2.0, 0.0], requires_grad=True)
        optimizer, m, expected = SignSGD([w], lr=0.25, momentum=beta), torch.zeros(3), w.detach().clone()
        for g in ([1.0, -3.0, 0.0], [-0.5, 1.0, 0.0], [-20.0, 1.0, 0.0]):
            w.grad = torch.tensor(g)
            optimizer.step()
            m = beta * m + (1.0 - beta) * w.grad
            expected -= 0.25 * m.sign()
            torch.testing.assert_close(w.detach(), expected)
    assert w.tolist() == [0.75, -1.25, 0.0]  # a large gradient outweighs the two small ones of the other sign


def test_signsgd_passes_a_closure_through_and_leaves_what_has_no_gradient():
    w, unused = (torch.tensor([1.0], requires_grad=True) for _ in range(2))
    optimizer = SignSGD([w, unused], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0 and (w.item(), unused.item()) == (0.5, 1.0)


def test_adam_without_memory_is_signsgd():
    w = small()
    for model, optimizer in (
        (one := copy.deepcopy(w.model), SignSGD(one.parameters(), lr=1e-3)),
        (
            two := copy.deepcopy(w.model),
            torch.optim.Adam(two.parameters(), 1e-3, betas=(0.0, 0.0), eps=1e-30),
        ),
    ):
        for _ in range(5):
            optimizer.zero_grad()
            w.loss(model, w.data).backward()
            optimizer.step()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_the_count_is_that_of_gradient_descent():
    model, target = Parabola([1.0]), 1e-3
    run = train_at(model, value, UNIT, "sgd", 0.1, target=target)
    assert run.converged and run.iterations == math.ceil(math.log(2 * target) / (2 * math.log(0.9)))
    assert len(run.losses) == run.iterations + 1 and run.losses[-1] <= target < run.losses[-2]
    assert run.losses[3] == pytest.approx(0.5 * 0.9**6)
    assert model.w.item() == 1.0  # a copy was trained


def test_statuses():
    model = Parabola([1.0])
    assert train_at(model, value, UNIT, "sgd", 0.1, target=1.0).iterations == 0
    capped = train_at(model, value, UNIT, "sgd", 0.1, target=1e-3, max_iterations=5)
    assert (capped.status, capped.iterations, len(capped.losses)) == ("capped", 5, 6)
    diverged = train_at(model, value, UNIT, "sgd", 3.0, target=1e-3)
    assert diverged.status == "diverged" and diverged.iterations < 10 and not diverged.converged
    nan = train_at(model, lambda m, b: value(m, b) * math.nan, UNIT, "sgd", 0.1, target=1e-3)
    assert (nan.status, nan.iterations) == ("diverged", 0)
    never = train_at(model, value, UNIT, "sgd", 0.1, target=1e-3, max_iterations=0)
    assert (never.status, never.iterations) == ("capped", 0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_full_batch_does_not_depend_on_how_it_is_cut(optimizer):
    w = small()
    w.model.double()
    rate = 10.0 ** OPTIMIZERS[optimizer][1]
    losses = [
        train_at(w.model, w.loss, w.batches(n), optimizer, rate, target=0.0, max_iterations=8).losses
        for n in (1, 4)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][-1] < losses[0][0]


def test_minibatches_are_seeded_and_all_are_seen_in_an_epoch():
    w = small()
    seen = []

    def loss(model, batch):
        seen.append(batch[1][0].item() if model.training and torch.is_grad_enabled() else None)
        return w.loss(model, batch)

    options = {"target": 0.0, "max_iterations": 8, "minibatch": True, "every": 4}
    runs = [train_at(w.model, loss, w.batches(4), "sgd", 0.1, seed=s, **options) for s in (0, 0, 1)]
    assert runs[0].losses == runs[1].losses != runs[2].losses
    assert (runs[0].every, len(runs[0].losses), runs[0].iterations) == (4, 3, 8)
    trained = [label for label in seen if label is not None]
    firsts = sorted(y[0].item() for _, y in w.batches(4))
    assert sorted(trained[:4]) == sorted(trained[4:8]) == firsts


def test_minibatch_training_converges():
    w = small("mlp", examples=32)
    options = {"minibatch": True, "every": 2, "target": 0.5, "max_iterations": 400}
    run = train_at(w.model, w.loss, w.batches(4), "adam", 0.03, **options)
    assert run.converged and run.iterations % 2 == 0 and run.losses[-1] <= 0.5


def test_the_callback_sees_every_evaluation():
    w, times = small(), []

    def note(t, model):
        times.append((t, w.loss(model, w.data).item()))

    run = train_at(w.model, w.loss, w.batches(), "adam", 0.01, target=0.0, max_iterations=3, callback=note)
    assert [t for t, _ in times] == [0, 1, 2, 3]
    assert [f for _, f in times] == pytest.approx(run.losses)


def test_the_best_learning_rate_of_a_parabola():
    model = Parabola([1.0, 0.1])  # best 2 / (mu + L) = 1.82; of the grid, 10^(1/4)
    found = train(model, value, UNIT, ["sgd"], target=1e-5, max_iterations=500, per_decade=4)["sgd"]
    assert found.best.learning_rate == pytest.approx(10.0**0.25) and not found.at_edge
    rates = [run.learning_rate for run in found.runs]
    assert rates == sorted(rates) and rates[0] < found.best.learning_rate < rates[-1]
    for run in found.runs:  # those cut short would have needed more
        if run.status == "capped":
            longer = train_at(model, value, UNIT, "sgd", run.learning_rate, target=1e-5, max_iterations=500)
            assert not longer.converged or longer.iterations >= found.iterations
    assert found.runs[-1].status == "diverged"


def searched(count, centre=0, cap=100):
    """What the search finds where a run at 10^k needs count(k) updates."""

    def run(k, cap):
        needed = count(k)
        status = "converged" if needed <= cap else "capped"
        return TrainingRun("sgd", 10.0**k, status, min(needed, cap), [float(needed)])

    return _search(run, centre, 1, cap)


def test_the_grid_grows_until_the_best_is_inside_or_the_grid_ends():
    for best in (-5, -1, 0, 2):
        found = searched(lambda k, best=best: 10 + 5 * abs(k - best))
        assert (found.best.learning_rate, found.iterations, found.at_edge) == (10.0**best, 10, False)
    for best in (-9, 5):
        found = searched(lambda k, best=best: 10 + abs(k - best))
        assert found.at_edge and found.best.learning_rate in (1e-7, 1e3)


def test_no_run_within_the_cap_is_no_count():
    found = searched(lambda k: 200 + abs(k - 1))
    assert found.iterations is None and found.best.learning_rate == 10.0 and not found.at_edge


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lion"}, r"optimizer must be one of sgd, .*, received 'lion'"),
        ({"learning_rate": 0.0}, r"learning_rate must be positive, received 0"),
        ({"learning_rate": -1.0}, r"learning_rate must be a finite number >= 0, received -1\.0"),
        ({"max_iterations": -1}, r"max_iterations must be an integer >= 0, received -1"),
        ({"every": 0}, r"every must be an integer >= 1, received 0"),
        ({"target": math.nan}, r"target must be .*, received nan"),
        ({"batches": []}, r"batches is empty"),
    ],
)
def test_bad_input_is_one_line(change, message):
    given = {"batches": UNIT, "optimizer": "sgd", "learning_rate": 0.1, "target": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        train_at(Parabola([1.0]), value, **given)


def test_an_unknown_optimizer_is_refused_before_any_training():
    with pytest.raises(ValueError, match="received 'lion'"):
        train(None, value, UNIT, ["sgd", "lion"], target=0.1)
