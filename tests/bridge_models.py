"""A tiny Transformer, its exact Hessian, and a twin of it whose query, key and value are apart."""

from __future__ import annotations

import torch
from torch import nn

TOKENS, WIDTH, CLASSES, LENGTH = 7, 4, 3, 5


class Tiny(nn.Module):
    """Embedding, torch's own layer with packed attention (and dropout, off when measured), a head."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, 2, 6, dropout=0.1, activation="gelu", batch_first=True, norm_first=norm_first
            )
            for _ in range(1)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class Attention(nn.Module):
    """What nn.MultiheadAttention computes, unpacked."""

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        parts = zip(packed.in_proj_weight.chunk(3), packed.in_proj_bias.chunk(3), strict=True)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in "qkv")
        for linear, (weight, bias) in zip((self.q, self.k, self.v), parts, strict=True):
            linear.weight.data, linear.bias.data = weight.data.clone(), bias.data.clone()
        self.out_proj = packed.out_proj
        self.batch_first = False  # or torch's layer looks for packed weights

    def forward(self, x, *_, **__):
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2)), None


def tiny(seed: int = 0, **options) -> Tiny:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Tiny(**options)
        for parameter in model.parameters():  # biases and LayerNorm weights away from 0 and 1
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def unpacked(model: Tiny) -> Tiny:
    """The same function with the same parameters, and k.bias a tensor of its own."""
    twin = tiny()
    twin.load_state_dict(model.state_dict())
    for layer in twin.layers:
        layer.self_attn = Attention(layer.self_attn)
    return twin


def batches(count: int = 3, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randint(TOKENS, (4, LENGTH), generator=generator),
            torch.randint(CLASSES, (4,), generator=generator),
        )
        for _ in range(count)
    ]


def cross_entropy(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def exact(model: nn.Module, loss, data):
    """(names, sizes, gradient of each batch, Hessian of the mean loss) by functions of a flat vector."""
    model = model.double().eval()
    named = {name: p.detach() for name, p in model.named_parameters()}
    names, shapes = list(named), [p.shape for p in named.values()]
    sizes = [p.numel() for p in named.values()]

    def value(flat, batch):
        parts = {n: v.reshape(s) for n, v, s in zip(names, flat.split(sizes), shapes, strict=True)}

        def substituted(x):
            return torch.func.functional_call(model, parts, (x,))

        return loss(substituted, batch)

    def mean(flat):
        return sum(value(flat, batch) for batch in data) / len(data)

    flat = torch.cat([p.reshape(-1) for p in named.values()])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gradients = torch.stack([torch.func.grad(value)(flat, batch) for batch in data])
        # not torch.func.hessian: nested transforms get the weights of a LayerNorm wrong (torch 2.13)
        hessian = torch.autograd.functional.hessian(mean, flat)
    return names, sizes, gradients.numpy(), hessian.numpy()
