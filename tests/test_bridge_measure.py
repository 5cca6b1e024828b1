"""measure: what the blocks are, what is refused, and that the model stays as it was."""

from __future__ import annotations

import itertools
import re
import sys
from collections import UserDict, namedtuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from bridge_models import batches, cross_entropy, exact, tiny, unpacked  # noqa: E402
from quadlab.bridge import BlockStatistics, measure  # noqa: E402

QUIET = {"progress": False, "probes": 2, "steps": 6}


def net() -> nn.Sequential:
    """Four blocks: enough for the errors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def inputs(count: int = 2) -> list[torch.Tensor]:
    return list(torch.randn(count, 5, 3, generator=torch.Generator().manual_seed(1)))


def square(model, x):
    return model(x).square().mean()


@pytest.fixture(scope="module")
def truth():
    return exact(tiny(), cross_entropy, batches())


@pytest.fixture(scope="module")
def measured() -> BlockStatistics:
    return measure(tiny(), cross_entropy, batches(), **QUIET)


# -- the numbers


def test_every_block_against_the_exact_hessian(truth, measured):
    names, sizes, gradients, hessian = truth
    assert measured.names == tuple(names) and measured.sizes.tolist() == sizes
    assert measured.exact.all() and measured.batches == 3
    mean = gradients.mean(axis=0)
    edges = np.cumsum([0, *sizes])
    for b, (i, j) in enumerate(itertools.pairwise(edges)):
        values = np.linalg.eigvalsh(hessian[i:j, i:j])
        norm = np.abs(values).max()
        assert measured.nodes[b] == pytest.approx(values, abs=1e-10 * norm)
        assert measured.top[b] == pytest.approx(values[-1], abs=1e-10 * norm)
        assert measured.bottom[b] == pytest.approx(values[0], abs=1e-10 * norm)
        assert measured.trace[b] == pytest.approx(values.sum(), abs=1e-10 * norm)
        assert measured.block_norms[b] == pytest.approx(norm, rel=1e-10)
        assert measured.gradient_norms[b] == pytest.approx(np.linalg.norm(mean[i:j]), rel=1e-12)
        noise = np.sqrt(gradients[:, i:j].var(axis=0, ddof=1).mean())
        assert measured.noise[b] == pytest.approx(noise, rel=1e-10)
    assert measured.trace_error.max() == measured.density_error.max() == 0.0


def test_large_blocks_are_estimated_and_say_so(truth, measured):
    s = measure(tiny(), cross_entropy, batches(), dense_below=30, progress=False)
    assert s.exact.tolist() == [size <= 30 for size in s.sizes] and not s.exact.all()
    b = int(np.argmin(s.exact))
    assert (s.top[b], s.bottom[b]) == pytest.approx((measured.top[b], measured.bottom[b]), rel=1e-9)
    assert s.trace_error[b] > 0.0 and s.density_error[b] > 0.0
    assert abs(s.trace[b] - measured.trace[b]) <= 6 * s.trace_error[b]


def test_without_probes_there_are_only_extremes():
    s = measure(tiny(), cross_entropy, batches(1), dense_below=30, probes=0, progress=False)
    b = int(np.argmin(s.exact))
    assert s.nodes[b].size == 0 and np.isnan(s.trace[b]) and np.isnan(s.leakage)
    assert s.top[b] > 0.0 and s.nodes[0].size == s.sizes[0]
    assert np.isnan(s.noise).all()  # one batch has no spread


def test_packed_tensors_split_are_those_of_the_unpacked_model():
    ours = measure(tiny(), cross_entropy, batches(), split_packed=True, **QUIET)
    theirs = measure(unpacked(tiny()), cross_entropy, batches(), **QUIET)
    named = {
        re.sub(r"self_attn\.(.)\.(weight|bias)", r"self_attn.in_proj_\2.\1", name): b
        for b, name in enumerate(theirs.names)
    }
    assert set(named) == set(ours.names) and ours.n_blocks == 19
    for b, name in enumerate(ours.names):
        other = named[name]
        assert ours.sizes[b] == theirs.sizes[other]
        for field in ("gradient_norms", "noise"):
            assert getattr(ours, field)[b] == pytest.approx(getattr(theirs, field)[other], abs=1e-14)
        assert ours.nodes[b] == pytest.approx(theirs.nodes[other], abs=1e-13)
    assert ours.block_norms[ours.names.index("layers.0.self_attn.in_proj_bias.k")] == 0.0
    assert ours.leakage == pytest.approx(theirs.leakage, abs=0.1)


def test_a_transposed_pack_is_split_by_columns():
    """GPT-2's c_attn maps rows to columns."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_attn = nn.Module()
            self.c_attn.weight = nn.Parameter(torch.arange(12.0).reshape(2, 6) / 10)

    def loss(model, scale):
        q, k, v = (scale @ model.c_attn.weight).chunk(3, dim=-1)
        return (q**2 + 2 * k**2 + 3 * v**3).sum()

    s = measure(Model(), loss, [torch.eye(2)], split_packed=True, **QUIET)
    assert s.names == tuple(f"c_attn.weight.{letter}" for letter in "qkv") and s.sizes.tolist() == [4] * 3
    assert s.nodes[0].tolist() == [2.0] * 4 and s.nodes[1].tolist() == [4.0] * 4
    assert s.nodes[2] == pytest.approx([18 * w for w in (0.4, 0.5, 1.0, 1.1)])
    assert measure(Model(), loss, [torch.eye(2)], **QUIET).names == ("c_attn.weight",)


def test_blocks_by_layer(truth):
    s = measure(tiny(), cross_entropy, batches(), blocks="layer", **QUIET)
    assert s.names == ("embed", "layers.0", "head")
    _, sizes, _, hessian = truth
    edges = np.cumsum([0, sizes[0], sum(sizes[1:-2]), sum(sizes[-2:])])
    for b, (i, j) in enumerate(itertools.pairwise(edges)):
        norm = s.block_norms[b]
        assert s.nodes[b] == pytest.approx(np.linalg.eigvalsh(hessian[i:j, i:j]), abs=1e-10 * norm)


def test_blocks_by_a_function_and_what_it_leaves_out(measured):
    def block(name):
        return "norms" if "norm" in name else name if name.startswith("head") else None

    s = measure(tiny(), cross_entropy, batches(), blocks=block, **QUIET)
    assert s.names == ("norms", "head.weight", "head.bias") and s.sizes.tolist() == [16, 12, 3]
    assert "embed.weight" in s.meta["left_out"] and s.meta["blocks"] == "function"
    for b, name in enumerate(s.names[1:], start=1):  # the others' numbers are as before
        assert s.nodes[b] == pytest.approx(measured.nodes[measured.names.index(name)], abs=1e-15)


def test_a_frozen_parameter_is_a_constant(measured):
    model = tiny()
    model.embed.requires_grad_(False)
    s = measure(model, cross_entropy, batches(), **QUIET)
    assert s.names == measured.names[1:] and s.meta["left_out"] == ["embed.weight"]
    assert not model.embed.weight.requires_grad


def test_tied_parameters_are_one_block():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    assert measure(model, square, inputs(), **QUIET).names == ("0.weight",)


def test_single_precision_agrees(measured):
    s = measure(tiny(), cross_entropy, batches(), dtype=torch.float32, **QUIET)
    assert s.meta["dtype"] == "float32" and measured.meta["dtype"] == "float64"
    assert s.block_norms == pytest.approx(measured.block_norms, rel=1e-3)
    assert s.gradient_norms == pytest.approx(measured.gradient_norms, rel=1e-4)


def test_the_same_seed_gives_the_same_bits():
    options = {"dense_below": 8, "probes": 3, "steps": 5, "progress": False}
    first, again, other = (measure(net(), square, inputs(), seed=seed, **options) for seed in (3, 3, 4))
    assert first == again
    assert not np.array_equal(first.nodes[0], other.nodes[0]) and first.leakage != other.leakage
    some = measure(
        net(), square, inputs(), seed=3, blocks=lambda n: n if n == "0.weight" else None, **options
    )
    assert np.array_equal(some.nodes[0], first.nodes[0])  # whatever the other blocks are


def test_the_result_says_how_it_was_measured_and_survives_a_file(tmp_path):
    s = measure(net(), square, inputs(), meta={"name": "net", "epoch": 3}, seed=5, **QUIET)
    s.save(tmp_path / "net.npz")
    found = BlockStatistics.load(tmp_path / "net.npz")
    assert found == s and "'net'" in repr(found)
    assert found.meta["seed"] == 5 and found.meta["epoch"] == 3 and found.meta["model"] == "Sequential"


# -- the batches


Pair = namedtuple("Pair", "x y")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: Pair(x, None),
        lambda x: {"x": x},
        lambda x: UserDict(x=x),
        lambda x: [x, "text", 3],
        lambda x: ({"x": [x]},),
    ],
)
def test_batches_of_any_kind_are_moved_to_double(wrap):
    def found(batch):
        if isinstance(batch, torch.Tensor):
            return batch
        items = batch.values() if hasattr(batch, "values") else batch
        return next(found(item) for item in items)

    def loss(model, batch):
        assert type(batch) is type(wrap(None)) and found(batch).dtype == torch.float64
        return square(model, found(batch))

    given = [wrap(x) for x in inputs()]
    s = measure(net(), loss, given, **QUIET)
    assert found(given[0]).dtype == torch.float32
    assert s.loss == measure(net(), square, inputs(), **QUIET).loss


def test_a_generator_is_read_once():
    assert measure(net(), square, iter(inputs(3)), **QUIET) == measure(net(), square, inputs(3), **QUIET)


def used_up():
    generator = iter(inputs())
    list(generator)
    return generator


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "batches is empty"),
        (used_up(), "batches is empty; an iterator that has been read before has nothing left"),
        (itertools.repeat(inputs()[0]), "batches has more than 10000 batches, or no end"),
        (torch.zeros(4, 3), "batches must be an iterable of batches, received tensor"),
        ({"x": 1}, "batches must be an iterable of batches"),
        (None, "batches must be an iterable of batches, received None"),
    ],
)
def test_batches_that_run_dry_or_never_end(given, message):
    with pytest.raises(ValueError, match=message):
        measure(net(), square, given, **QUIET)


# -- planted faults


class Dropping(nn.Module):
    """Dropout that evaluation mode does not switch off."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return nn.functional.dropout(self.net(x), training=True)


class Counting(nn.Module):
    """A state that changes with each call."""

    def __init__(self):
        super().__init__()
        self.net, self.calls = net(), 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) * self.calls


def noisy_gradient(model, x):
    """The value is always the same."""
    value = square(model, x)
    return value + torch.rand(()).double() * (value - value.detach())


class Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.spare = net(), nn.Linear(2, 2)

    def forward(self, x):
        return self.net(x)


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 2, sparse=True)

    def forward(self, x):
        return self.table(torch.arange(3)) * x.sum()


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.z = nn.Parameter(torch.ones(2, dtype=torch.complex64))


def frozen():
    return net().requires_grad_(False)


def infinite_gradient(model, x):
    return sum((p - p.detach()).abs().sqrt().sum() for p in model.parameters())


def outsider(model, x, other=net().double()):  # noqa: B008
    return square(other, x)


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (net, lambda m, x: square(m, x) * torch.nan, "the loss is nan, not finite"),
        (net, lambda m, x: square(m, x) / 0.0, "the loss is inf, not finite"),
        (net, infinite_gradient, "parameter '0.weight' has a gradient that is not finite"),
        (net, lambda m, x: m(x), "loss must return a real scalar tensor, received tensor"),
        (net, lambda m, x: square(m, x).item(), "loss must return a real scalar tensor, received 0."),
        (net, lambda m, x: None, "loss must return a real scalar tensor, received None"),
        (net, lambda m, x: torch.tensor(1.0), "the loss depends on no parameter"),
        (net, outsider, "parameter '0.weight' gets no gradient"),
        (Spare, square, r"parameter 'spare.weight' gets no gradient: .*requires_grad_\(False\)"),
        (frozen, square, "no block to measure: every parameter is frozen or left out"),
        (Sparse, square, "parameter 'table.weight' has a sparse gradient"),
        (Complex, square, "parameter 'z' is complex"),
        (Dropping, square, r"the loss is .*, then .* on the same batch: the model or the loss draws"),
        (Counting, square, r"the loss is .*, then .* on the same batch"),
        (net, noisy_gradient, "the gradient of '0.weight' is another one on the same batch"),
        (nn.Tanh, square, "model Tanh has no parameters"),
        (lambda: square, square, "model must be an nn.Module, received <function"),
    ],
)
def test_what_cannot_be_measured_is_a_clear_error(model, loss, message):
    with pytest.raises(ValueError, match=message) as caught:
        measure(model(), loss, inputs(), **QUIET)
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_copied():
    model = net()
    model.kept = model[0].weight * 2  # no leaf: torch refuses to copy it
    with pytest.raises(ValueError, match="model Sequential cannot be copied: Only Tensors created") as caught:
        measure(model, square, inputs(), **QUIET)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": "rows"}, "blocks must be 'tensor', 'layer' or a function of a name, received 'rows'"),
        ({"blocks": lambda name: 3}, r"blocks\('0.weight'\) must be the name of a block or None, received 3"),
        ({"blocks": lambda name: ""}, r"blocks\('0.weight'\) must be the name of a block or None"),
        ({"blocks": lambda name: None}, "no block to measure"),
        ({"probes": -1}, "probes must be an integer >= 0, received -1"),
        ({"probes": 2.5}, "probes must be an integer >= 0, received 2.5"),
        ({"steps": 0}, "steps must be an integer >= 1, received 0"),
        ({"dense_below": 1}, "dense_below must be an integer >= 2, received 1"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"threads": True}, "threads must be an integer >= 1, received True"),
        ({"eigenvalue_tolerance": float("nan")}, "eigenvalue_tolerance must be a finite number >= 0"),
        ({"dtype": torch.bfloat16}, "dtype must be torch.float64 or torch.float32, received torch.bfloat16"),
        ({"device": "tpu9"}, "device 'tpu9' cannot be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"meta": {"model": object()}}, "meta must be plain JSON"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        measure(net(), square, inputs(), **(QUIET | options))
    assert "\n" not in str(caught.value)


# -- the model stays as it was


def state(model):
    return [
        (name, p.dtype, p.device, p.requires_grad, p.grad, p.detach().clone())
        for name, p in model.named_parameters()
    ] + [(name, module.training) for name, module in model.named_modules()]


def interrupted(model, x):
    interrupted.calls += 1
    if interrupted.calls > 3:
        raise KeyboardInterrupt
    return square(model, x)


@pytest.mark.parametrize(
    ("loss", "error"),
    [
        (square, None),
        (lambda m, x: square(m, x) * torch.nan, ValueError),
        (lambda m, x: 1 // 0, ZeroDivisionError),
        (interrupted, KeyboardInterrupt),
    ],
)
def test_nothing_is_changed(loss, error):
    interrupted.calls = 0
    model = net().train()
    model[2].eval()
    model[0].bias.requires_grad_(False)
    square(model, inputs()[0]).backward()
    before, threads, random = state(model), torch.get_num_threads(), torch.get_rng_state()
    options = QUIET | {"threads": threads + 1}
    if error:
        with pytest.raises(error):
            measure(model, loss, inputs(), **options)
    else:
        measure(model, loss, inputs(), **options)
    for old, new in zip(before, state(model), strict=True):
        assert len(old) == len(new)
        for a, b in zip(old, new, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a is b or a == b
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), random)


def test_measured_where_gradients_are_off():
    expected = measure(net(), square, inputs(), **QUIET)
    with torch.no_grad():
        assert measure(net(), square, inputs(), **QUIET) == expected
    model = net()
    with torch.inference_mode():
        assert inputs()[0].is_inference()
        assert measure(model, square, inputs(), **QUIET) == expected


class Bar:
    """A progress bar that remembers what it was told."""

    def __init__(self, wanted, total, **_):
        self.wanted, self.left = wanted, total

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self):
        self.left -= 1


def test_a_progress_bar_over_the_blocks(monkeypatch):
    bars = []

    def progress_bar(*arguments, **options):
        bars.append(Bar(*arguments, **options))
        return bars[-1]

    monkeypatch.setattr(sys.modules["quadlab.bridge.measure"], "progress_bar", progress_bar)
    measure(net(), square, inputs(), progress=True, probes=1, steps=2)
    assert [(bar.wanted, bar.left) for bar in bars] == [(True, 0)]


def test_extremes_that_do_not_converge_name_their_block(monkeypatch):
    def eigsh(*_, **__):
        raise RuntimeError("No convergence")

    monkeypatch.setattr("quadlab.bridge.spectrum.eigsh", eigsh)
    with pytest.raises(RuntimeError, match=r"block '0\.weight': No convergence"):
        measure(net(), square, inputs(), dense_below=8, **QUIET)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(measured):
    s = measure(tiny(), cross_entropy, batches(), device="cuda", **QUIET)
    assert s.block_norms == pytest.approx(measured.block_norms, rel=1e-9)
    assert s.gradient_norms == pytest.approx(measured.gradient_norms, rel=1e-9)
