"""The small models and their data: what they hold, that they are smooth, and that a seed decides all."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from quadlab.bridge import data  # noqa: E402
from quadlab.bridge.models import WORKLOADS, cross_entropy, workload  # noqa: E402

SMALL = {"depth": 2, "width": 8, "examples": 6}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def named(w):
    return dict(w.model.named_parameters())


def test_the_issue_names_them():
    assert list(WORKLOADS) == ["gpt-pre", "gpt-post", "vit-pre", "vit-post", "cnn", "mlp"]


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_seed_decides_every_bit_and_leaves_torchs_own_alone(name):
    state = torch.random.get_rng_state()
    one, two, other = (workload(name, seed=s, **SMALL) for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(one.data, two.data, strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(p, named(two)[key]) for key, p in named(one).items())
    assert not torch.equal(one.data[0], other.data[0])
    assert not torch.equal(named(one)["head.weight"], named(other)["head.weight"])


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_loss_is_deterministic_smooth_and_as_large_as_a_guess(name):
    w = workload(name, **SMALL)
    model = w.model.double()
    value = cross_entropy(model, w.data)
    assert value.dtype == torch.float64 and cross_entropy(model, w.data).item() == value.item()
    classes = len(data.ALPHABET) if name.startswith("gpt") else data.CLASSES
    assert value.item() == pytest.approx(torch.tensor(classes).log().item(), rel=0.6)
    parameters = list(model.parameters())
    first = torch.autograd.grad(value, parameters, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), parameters, allow_unused=True)
    assert all(g is not None and torch.isfinite(g).all() for g in (*first, *second))


@pytest.mark.parametrize("name", ["gpt-pre", "gpt-post", "vit-pre", "vit-post"])
def test_blocks_of_a_transformer(name):
    w = workload(name, **SMALL)
    names = named(w)
    assert sum(key.startswith("layers.0.attention.") for key in names) == 8  # q, k, v, o with a bias each
    assert ("ln.weight" in names) == name.endswith("pre")
    assert len(names) == len(named(workload(name, **{**SMALL, "depth": 1}))) + 16
    model = w.model.double()
    gradient = dict(
        zip(names, torch.autograd.grad(cross_entropy(model, w.data), list(model.parameters())), strict=True)
    )
    for key, g in gradient.items():
        if key.endswith("attention.k.bias"):
            assert g.abs().max() < 1e-15
        else:
            assert g.abs().max() > 1e-8


def test_pre_and_post_ln_start_from_the_same_matrices():
    pre, post = (named(workload(f"gpt-{kind}", **SMALL)) for kind in ("pre", "post"))
    assert set(pre) - set(post) == {"ln.weight", "ln.bias"}
    assert all(torch.equal(p, pre[key]) for key, p in post.items())


def test_attention_is_torchs_and_the_future_is_not_seen():
    w = workload("gpt-pre", **SMALL)
    attention = w.model.layers[0].attention
    x = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = (f(x).unflatten(-1, (4, 2)).transpose(1, 2) for f in (attention.q, attention.k, attention.v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(attention(x), attention.o(expected.transpose(1, 2).flatten(-2)))
    tokens = w.data[0].clone()
    before = w.model(tokens)
    tokens[:, 20:] = 5
    assert torch.equal(w.model(tokens)[:, :20], before[:, :20])
    assert not torch.equal(w.model(tokens)[:, 20:], before[:, 20:])


def test_full_size_is_some_hundred_thousand_parameters():
    sizes = {name: workload(name, examples=1).size for name in WORKLOADS}
    assert all(90_000 <= size <= 300_000 for size in sizes.values()), sizes


def test_batches_share_out_the_data():
    w = workload("mlp", **SMALL)
    (full,) = w.batches()
    assert all(torch.equal(a, b) for a, b in zip(full, w.data, strict=True))
    parts = w.batches(3)
    assert [len(x) for x, _ in parts] == [2, 2, 2]
    assert torch.equal(torch.cat([y for _, y in parts]), w.data[1])
    mean = sum(w.loss(w.model, b) for b in parts) / 3
    torch.testing.assert_close(mean, w.loss(w.model, w.data))


def test_text_is_the_topics():
    from pydoc_data.topics import topics

    x, y = data.text(2, 40, seed=1)
    shown = "".join(data.ALPHABET[k] for k in [*x[0].tolist(), y[0, -1].item()])
    text = "".join(topics[key] for key in sorted(topics))
    assert shown in "".join(c for c in text if c in data.ALPHABET)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: workload("gpt"), r"model must be one of gpt-pre, .*, received 'gpt'"),
        (lambda: workload("mlp", depth=0), r"depth must be an integer >= 1, received 0"),
        (lambda: workload("mlp", seed=-1), r"seed must be an integer >= 0, received -1"),
        (lambda: workload("mlp", examples=1798), r"examples must be an integer in 1\.\.1797, received 1798"),
        (lambda: workload("mlp", **SMALL).batches(7), r"count must be an integer in 1\.\.6, received 7"),
        (lambda: data.text(3, 0), r"context must be an integer in 1\.\.1024, received 0"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()
