"""The Transformer of 2017 against transformers' MarianMTModel, the paper's formulas, and its parameter counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data_pipeline.common.errors import InputError
from pretraining.config import load_config
from pretraining.models.shapes import MetaLayers
from pretraining.models.transformer_2017 import huggingface
from pretraining.models.transformer_2017.config import TransformerConfig2017
from pretraining.models.transformer_2017.model import positions_within, sinusoids
from tests.building import build

VOCABULARY = 200


def make(**keys: Any) -> Any:
    config = TransformerConfig2017("transformer", 2, 32, 4, 64, num_decoder_layers=3, intermediate_size=48, **keys)
    model = build(config, VOCABULARY)
    model.initialize(1)
    with torch.no_grad():  # norms and biases that do nothing would hide where they stand
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    return model.eval()


def marian(model: Any) -> Any:
    values = huggingface.huggingface_config(model, {"pad": 0, "eos": 2})
    made = transformers.MarianMTModel(transformers.MarianConfig(**values)).eval()
    tensors = model.state_dict()
    weights = {e.theirs: e.export(tensors[e.ours]).clone() for e in huggingface.weight_map(model)}
    missing, unexpected = made.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(any(part in name for part in ("embed", "lm_head", "final_logits_bias")) for name in missing)
    return made


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_logits_are_those_of_marian() -> None:
    model = make()
    reference = marian(model)
    inputs, targets = tokens(2, 50), tokens(2, 31)
    documents = (torch.arange(50) < 41).long().expand(2, -1) - 1
    with torch.no_grad():
        for mask in (None, documents):
            attended = None if mask is None else mask + 1
            expected = reference(input_ids=inputs, attention_mask=attended, decoder_input_ids=targets).logits
            written = None if mask is None else torch.zeros_like(targets)
            found = model.head.logits(model(inputs, targets, mask, written))
            assert (found - expected).abs().max() < 1e-5


def test_packed_documents_are_as_they_are_alone() -> None:
    model, sizes = make(), [(5, 7), (9, 3), (4, 4)]
    alone = [(tokens(1, a), tokens(1, b)) for a, b in sizes]
    documents = [torch.cat([torch.full((1, s[i]), n) for n, s in enumerate(sizes)], 1) for i in (0, 1)]
    padding, none = torch.zeros(1, 6, dtype=torch.long), torch.full((1, 6), -1)
    packed = [torch.cat([*(pair[i] for pair in alone), padding], 1) for i in (0, 1)]
    hidden = model(*packed, *(torch.cat([d, none], 1) for d in documents))
    assert hidden.isfinite().all()
    for number, pair in enumerate(alone):
        found = hidden[:, :-6][documents[1] == number]
        assert (found - model(*pair)[0]).abs().max() < 1e-5


def test_nothing_is_seen_ahead() -> None:
    model = make()
    embedded: list[torch.Tensor] = []
    model.token_embedding.register_forward_hook(
        lambda *call: embedded.append(call[2].detach().requires_grad_()) or embedded[-1]
    )
    hidden = model(tokens(1, 9), tokens(1, 8))
    for place in range(8):
        read, written = torch.autograd.grad(hidden[0, place].sum(), embedded, retain_graph=True)
        assert read.abs().sum(-1).min() > 0
        seen = written[0].abs().sum(-1) > 0
        assert seen.tolist() == [i <= place for i in range(8)]


def test_positions_are_the_papers_and_begin_anew_in_each_document() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1, 2, -1, -1]])
    assert positions_within(documents).tolist() == [[0, 1, 0, 1, 2, 0, 0, 1]]
    found = sinusoids(torch.tensor([[0, 1, 700]]), 8)[0]
    for row, position in zip(found, (0, 1, 700), strict=True):
        for i in range(4):  # section 3.5: PE(pos, 2i) and PE(pos, 2i + 1)
            angle = position / 10000 ** (2 * i / 8)
            assert row[[i, 4 + i]].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-6)


def test_embeddings_are_scaled_and_weights_drawn_as_published() -> None:
    model = build(TransformerConfig2017("transformer", 1, 256, 4, 64), 2000)
    model.initialize(1)
    assert float(model.token_embedding.weight[:2000].detach().std()) == pytest.approx(256**-0.5, rel=0.02)
    assert not model.token_embedding.weight[2000:].any()
    up = model.encoder.blocks[0].mlp.up.weight
    assert (
        float(up.detach().std()) == pytest.approx((2 / (256 + 1024)) ** 0.5, rel=0.02)
        and up.abs().max() <= (6 / 1280) ** 0.5 + 1e-6
    )
    biases = [name for name, _ in model.named_parameters() if name.endswith("bias") and "norm" not in name]
    assert biases and all(".mlp." in name for name in biases)  # FFN's b1 and b2 are the only ones of the paper


@pytest.mark.parametrize(
    ("preset", "exact", "published"), [("transformer_base", 63_045_632, 65), ("transformer_big", 214_171_648, 213)]
)
def test_presets_have_the_published_sizes(preset: str, exact: int, published: int) -> None:
    """Table 3 has millions, for a shared vocabulary of about 37,000; no number of tokens gives both of them: base would
    need 40,800, big 35,900."""
    config = load_config([f"model={preset}", "objective=span_corruption", "data.path=x"]).model
    model = build(config, 37_000, MetaLayers())
    blocks = sum(
        n * (4 * d * d * (1 + cross) + 2 * d * m + m + d + 2 * d * (2 + cross))
        for d, m in [(config.hidden_size, config.mlp_size)]
        for n, cross in ((6, 0), (6, 1))
    )
    assert model.published_parameters() == exact == blocks + 37_000 * config.hidden_size
    assert abs(exact / 1e6 / published - 1) < 0.031


def test_dropout_is_where_the_paper_has_it() -> None:
    model = make(dropout=0.3)
    assert model.decoder.blocks[0].attention.dropout == 0 and model.decoder.blocks[0].mlp.dropout.p == 0
    assert model.decoder.blocks[0].dropout.rate == 0.3 and model.encoder.dropout.p == 0.3


def test_flops_are_those_that_torch_counts() -> None:
    """Of a row of one document, forward and backward, the projection without the vocabulary's padding."""
    model, length = build(TransformerConfig2017("transformer", 2, 32, 4, 64, num_decoder_layers=3), 256), 48
    model.initialize(1)
    rows = tokens(2, length)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # torch counts no fused one on CPUs
        model.head(model(rows, rows), rows).backward()
    assert model.flops_per_token(length) == pytest.approx(counter.get_total_flops() / (2 * 2 * length), rel=0.01)


def test_what_marian_cannot_have_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.norm_eps=1e-06"):
        huggingface.huggingface_config(make(norm_eps=1e-6), {"pad": 0, "eos": 2})
    values = huggingface.huggingface_config(make(), {"pad": 0, "eos": 2})
    assert huggingface.from_huggingface_config(values)["num_decoder_layers"] == 3
    for key, other in (("decoder_ffn_dim", 64), ("activation_function", "gelu"), ("scale_embedding", False)):
        with pytest.raises(InputError, match=key):
            huggingface.from_huggingface_config(values | {key: other})
    assert TransformerConfig2017("transformer", 1, 9, 3, 8).problems() != []
