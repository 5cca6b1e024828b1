"""Products, extremes and densities, against the exact Hessian of a small Transformer."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from bridge_models import batches, cross_entropy, exact, tiny, unpacked  # noqa: E402
from quadlab.bridge import measure  # noqa: E402
from quadlab.bridge.spectrum import (  # noqa: E402
    VECTORS,
    Curvature,
    Piece,
    dense_spectrum,
    extremes,
    lanczos,
    lanczos_density,
    leakage,
)

LIKE = torch.zeros(1, dtype=torch.float64)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def curvature_of(model, data) -> Curvature:
    model = model.double().eval()
    with sdpa_kernel(SDPBackend.MATH):
        loss = sum(cross_entropy(model, batch) for batch in data) / len(data)
    return tensor_a_block(loss, dict(model.named_parameters()))


def tensor_a_block(loss, parameters) -> Curvature:
    return Curvature(loss, parameters, [[Piece(n, (), tuple(p.shape))] for n, p in parameters.items()])


@pytest.fixture(scope="module")
def truth():
    """Names, sizes, gradients, Hessian, and the blocks' slices, of the tiny Transformer."""
    names, sizes, gradients, hessian = exact(tiny(), cross_entropy, batches())
    edges = np.cumsum([0, *sizes])
    return names, sizes, gradients, hessian, [slice(*pair) for pair in itertools.pairwise(edges)]


@pytest.fixture(scope="module")
def curvature():
    return curvature_of(tiny(), batches())


def test_the_exact_hessian_is_the_gradients_derivative(truth):
    """The reference itself, by central differences of the gradient: nested transforms can be wrong."""
    _, sizes, _, hessian, _ = truth
    v = np.random.default_rng(0).standard_normal(sum(sizes))
    step, moved = 1e-5, []
    for sign in (1, -1):
        model = tiny().double()
        for p, d in zip(model.parameters(), torch.as_tensor(v).split(sizes), strict=True):
            p.data += sign * step * d.reshape(p.shape)
        moved.append(
            torch.cat([curvature_of(model, batches()).gradient(b) for b in range(len(sizes))]).numpy()
        )
    assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(hessian @ v, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("count", [1, 3, VECTORS + 3])
def test_products(truth, curvature, count):
    _, sizes, _, hessian, blocks = truth
    rng = np.random.default_rng(count)
    vectors = rng.standard_normal((count, sum(sizes)))
    parts = torch.as_tensor(vectors).split(sizes, dim=1)
    full = torch.cat(curvature.full_product(parts), dim=1).numpy()
    assert full == pytest.approx(vectors @ hessian, abs=1e-12)
    for b, block in enumerate(blocks):
        found = curvature.product(b, parts[b]).numpy()
        assert found == pytest.approx(vectors[:, block] @ hessian[block, block], abs=1e-12)
    assert curvature._together


class Double(torch.autograd.Function):
    """x -> 2 x, whose second derivative looks at a number, which no rule for several vectors can."""

    @staticmethod
    def forward(context, x):
        return 2 * x

    @staticmethod
    def backward(context, g):
        return Back.apply(g)


class Back(torch.autograd.Function):
    @staticmethod
    def forward(context, g):
        return 2 * g

    @staticmethod
    def backward(context, g):
        assert np.isfinite(float(g.sum()))
        return 2 * g


def test_an_operation_that_cannot_be_vectorised():
    w = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    curvature = tensor_a_block((Double.apply(w) ** 3).sum(), {"w": w})
    found = curvature.product(0, torch.eye(3, dtype=torch.float64))
    assert not curvature._together
    assert torch.equal(found, torch.diag(48 * w.detach()))


def test_a_loss_that_is_linear_in_a_block_has_no_curvature_there():
    a, b = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in "ab")
    curvature = tensor_a_block((a**2).sum() + 3 * b.sum(), {"a": a, "b": b})
    eye = torch.eye(2, dtype=torch.float64)
    assert torch.equal(curvature.product(0, eye), 2 * eye)
    assert not curvature.product(1, eye).any()
    full = curvature.full_product([eye, eye])
    assert torch.equal(full[0], 2 * eye) and not full[1].any()


def test_extremes_to_1e_10_of_the_norm(truth, curvature):
    _, sizes, _, hessian, blocks = truth
    worst = 0.0
    for b, block in enumerate(blocks):
        values = np.linalg.eigvalsh(hessian[block, block])
        norm = np.abs(values).max()
        ours = dense_spectrum(lambda v, b=b: curvature.product(b, v), sizes[b], LIKE)
        worst = max(worst, np.abs(ours - values).max() / norm)
        found = extremes(
            lambda v, b=b: curvature.product(b, v), sizes[b], LIKE, 1e-6, np.random.default_rng(b)
        )
        worst = max(worst, np.abs(np.array(found) - values[[0, -1]]).max() / norm)
    print(f"largest error of an eigenvalue over its block's norm: {worst:.1e}")
    assert worst <= 1e-10


def symmetric(values, seed=0):
    """Products with a random rotation of these eigenvalues."""
    size = len(values)
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]
    matrix = torch.as_tensor((q * values) @ q.T)
    return lambda rows: rows @ matrix


@pytest.mark.parametrize(
    "values",
    [
        np.concatenate([np.linspace(-0.1, 0.2, 497), [-1.0, 3.0, 10.0]]),  # outliers at both ends
        np.concatenate([np.zeros(450), np.logspace(-6, 0, 50)]),  # the bottom is zero, many times
        np.concatenate([np.linspace(-4.0, -1.0, 500)]),  # negative, the edges dense
        np.concatenate([1e-9 * np.linspace(0, 1, 499), [1e-9 * 5]]),  # far below one
    ],
    ids=["outliers", "singular", "negative", "tiny"],
)
def test_extremes_of_large_blocks(values):
    """Blocks too large for ARPACK's first Krylov space: its tolerance decides."""
    norm = np.abs(values).max()
    for tolerance, error in ((1e-3, 1e-3), (1e-6, 1e-6), (1e-8, 1e-10)):
        bottom, top = extremes(symmetric(values), 500, LIKE, tolerance, np.random.default_rng(0))
        assert abs(bottom - values.min()) <= error * norm
        assert abs(top - values.max()) <= error * norm


def test_density_of_every_block(truth, curvature):
    """With a step a dimension the quadrature is exact for each probe: what is left is chance."""
    _, sizes, _, hessian, blocks = truth
    probes, distances, deviations = 16, [], []
    for b, block in list(enumerate(blocks))[::2]:
        values = np.linalg.eigvalsh(hessian[block, block])
        found = lanczos_density(
            lambda v, b=b: curvature.product(b, v), sizes[b], LIKE, probes, 100, np.random.default_rng(b)
        )
        assert found.weights.sum() == pytest.approx(1.0, rel=1e-12) and (np.diff(found.nodes) >= 0).all()
        norm = np.abs(values).max()
        assert values[0] - 1e-12 * norm <= found.nodes[0] and found.nodes[-1] <= values[-1] + 1e-12 * norm
        distances.append(wasserstein_distance(found.nodes, values, found.weights) / found.error)
        deviations.append((found.trace - values.sum()) / found.trace_error)
        exact_distance = wasserstein_distance(found.nodes, values, found.weights) / norm
        assert exact_distance <= 0.1
    print(f"distance over its error: {np.round(distances, 1)}; trace: {np.round(deviations, 1)}")
    assert max(distances) <= 3.0
    assert np.abs(deviations).max() <= 5.0 and np.mean(np.square(deviations)) <= 2.5


def test_density_converges_with_steps():
    values = np.concatenate([np.logspace(-4, 0, 380), -np.logspace(-4, -1, 20)])
    product = symmetric(values)
    distances = [
        wasserstein_distance(found.nodes, values, found.weights)
        for steps in (2, 5, 20, 80)
        for found in [lanczos_density(product, 400, LIKE, 32, steps, np.random.default_rng(0))]
    ]
    assert (np.diff(distances) < 0).all() and distances[-1] < 0.1 * distances[0]


def test_density_moments_are_those_of_its_probes():
    """An m-step quadrature integrates polynomials of degree 2m - 1 exactly, probe by probe."""
    values = np.linspace(-1.0, 2.0, 60)
    matrix = np.diag(values)
    size, steps = 60, 5
    signs = np.random.default_rng(7).integers(0, 2, (3, size)) * 2.0 - 1.0
    found = lanczos_density(lambda rows: rows @ torch.as_tensor(matrix), size, LIKE, 3, steps, _Signs(signs))
    for degree in range(2 * steps):
        expected = np.mean([z @ np.linalg.matrix_power(matrix, degree) @ z / size for z in signs])
        assert found.weights @ found.nodes**degree == pytest.approx(expected, rel=1e-10)


class _Signs:
    """A generator whose integers are known; the check for rounding draws normals first."""

    def __init__(self, signs):
        self.signs, self.normal = signs, np.random.default_rng(0)

    def standard_normal(self, shape):
        return self.normal.standard_normal(shape)

    def integers(self, low, high, shape):
        assert (low, high, shape) == (0, 2, self.signs.shape)
        return (self.signs + 1) / 2


def test_lanczos_stops_where_the_krylov_space_ends():
    values = np.repeat([0.0, 1.0, 4.0], 30)
    for diagonal, off_diagonal in lanczos(symmetric(values), torch.as_tensor(np.ones((2, 90))), 50):
        assert diagonal.size == 3 and off_diagonal.size == 2
    found = lanczos_density(symmetric(values), 90, LIKE, 40, 50, np.random.default_rng(0))
    assert np.unique(found.nodes.round(9)).tolist() == [0.0, 1.0, 4.0]


def test_lanczos_is_orthogonal_to_the_end():
    """Without reorthogonalisation converged Ritz values come again: copies of the top eigenvalue."""
    values = np.concatenate([np.linspace(0, 1, 199), [100.0]])
    ((diagonal, off_diagonal),) = lanczos(symmetric(values), torch.as_tensor(np.ones((1, 200))), 120)
    matrix = np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
    assert np.count_nonzero(np.linalg.eigvalsh(matrix) > 50.0) == 1


def test_rounding_is_no_curvature():
    """The bias of the keys moves all scores of a query alike: softmax does not see it."""
    for dense_below in (2, 256):
        s = measure(
            unpacked(tiny()),
            cross_entropy,
            batches(1),
            blocks=lambda name: name if "self_attn" in name else None,
            probes=2,
            steps=8,
            dense_below=dense_below,
            progress=False,
        )
        b = s.names.index("layers.0.self_attn.k.bias")
        assert (s.top[b], s.bottom[b], s.trace[b]) == (0.0, 0.0, 0.0) and not s.nodes[b].any()
        assert np.count_nonzero(s.block_norms == 0.0) == 1
        assert s.gradient_norms[b] <= 1e-15 * s.gradient_norms.max()


def test_curvature_near_rounding_is_not_taken_for_it():
    product = symmetric(1e-9 * np.linspace(-1, 1, 50))
    noise = torch.as_tensor(np.random.default_rng(3).standard_normal((50, 50)))
    for relative, zero in ((1e-6, False), (1.0, True)):

        def noisy(rows, relative=relative):
            return product(rows) + 1e-9 * relative * (rows @ noise)

        assert (dense_spectrum(noisy, 50, LIKE).any() == 0) == zero
        assert (extremes(noisy, 50, LIKE, 1e-6, np.random.default_rng(0)) == (0.0, 0.0)) == zero


def test_leakage(truth, curvature):
    _, _, _, hessian, blocks = truth
    inside = np.zeros_like(hessian)
    for block in blocks:
        inside[block, block] = hessian[block, block]
    v = np.random.default_rng(0).standard_normal((len(hessian), 4000))
    ratios = np.linalg.norm((hessian - inside) @ v, axis=0) / np.linalg.norm(hessian @ v, axis=0)
    probes = 40
    found = np.array(list(leakage(curvature, probes, LIKE, np.random.default_rng(1))))
    assert len(found) == probes and found.min() >= 0.0
    error = np.hypot(ratios.std() / 4000**0.5, found.std(ddof=1) / probes**0.5)
    print(f"leakage {found.mean():.4f}, exact {ratios.mean():.4f}, error {error:.4f}")
    assert abs(found.mean() - ratios.mean()) <= 4 * error


def test_one_block_leaks_nothing():
    s = measure(tiny(), cross_entropy, batches(1), blocks=lambda name: "all", probes=3, progress=False)
    assert s.n_blocks == 1 and s.leakage <= 1e-14


def test_twice_as_fast_as_a_whole_backward_a_product():
    """The reference's way: loss, gradient and a product over the whole model for each block and step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True) for _ in range(2)]
        model = nn.Sequential(*layers, nn.Linear(16, 3)).double().eval()
        x, y = torch.randn(8, 10, 16, dtype=torch.float64), torch.randint(3, (80,))
    parameters = list(model.parameters())

    def loss():
        with sdpa_kernel(SDPBackend.MATH):
            return nn.functional.cross_entropy(model(x).flatten(0, 1), y)

    def whole(b, v):
        gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
        dot = (gradients[b].reshape(-1) * v).sum()
        return torch.autograd.grad(dot, parameters, allow_unused=True)[b].reshape(-1)

    curvature = tensor_a_block(loss(), dict(model.named_parameters()))
    generator = torch.Generator().manual_seed(1)
    vectors = [torch.randn(size, generator=generator, dtype=torch.float64) for size in curvature.sizes]
    spent = [0.0, 0.0]
    for repeat in range(4):  # the first warms up
        for b, v in enumerate(vectors):
            begin = time.process_time()
            theirs = whole(b, v)
            middle = time.process_time()
            (ours,) = curvature.product(b, v[None])
            end = time.process_time()
            assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-14)
            if repeat:
                spent[0] += middle - begin
                spent[1] += end - middle
    print(f"{len(vectors)} blocks, a product each: {spent[0]:.2f} s against {spent[1]:.2f} s")
    assert spent[0] >= 2.0 * spent[1]
