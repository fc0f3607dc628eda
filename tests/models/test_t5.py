"""T5 against transformers' T5ForConditionalGeneration, and against the published parameter counts."""

import pytest
import torch
import transformers
from torch import nn

from pretraining.config import load_config
from pretraining.models.shapes import MetaLayers
from pretraining.models.t5 import huggingface as t5_huggingface
from pretraining.models.t5.config import T5Config
from pretraining.models.t5.model import relative_bucket
from tests.building import build

VOCABULARY = 200
SHAPES = {
    "v1.0": {"activation": "relu", "tie_embeddings": True},
    "v1.1": {"activation": "gated_gelu", "tie_embeddings": False},
}
PUBLISHED = {  # with a vocabulary of 32128: those of the released checkpoints
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "t5_v1_1_small": 76_961_152,
    "t5_v1_1_base": 247_577_856,
    "t5_v1_1_large": 783_150_080,
    "t5_v1_1_xl": 2_849_757_184,
    "t5_v1_1_xxl": 11_135_332_352,
    "mt5_small": 300_176_768,
    "mt5_base": 582_401_280,
    "mt5_large": 1_229_581_312,
    "mt5_xl": 3_742_619_648,
    "mt5_xxl": 12_921_057_280,
    "byt5_small": 299_637_760,
    "byt5_base": 581_653_248,
    "byt5_large": 1_228_183_552,
    "byt5_xl": 3_737_801_728,
    "byt5_xxl": 12_906_899_328,
}


def make(version, **keys):
    config = T5Config(
        name="t5",
        num_layers=2,
        num_decoder_layers=3,
        hidden_size=32,
        num_heads=4,
        head_dim=12,
        intermediate_size=48,
        max_seq_len=256,
        **SHAPES[version],
        **keys,
    )
    model = build(config, VOCABULARY)
    model.initialize(1)
    return config, model.eval()


def theirs(config, model):
    values = t5_huggingface.huggingface_config(model, {"pad": 0, "eos": 2})
    made = transformers.T5ForConditionalGeneration(transformers.T5Config(**values)).eval()
    if not config.tie_embeddings:  # transformers 5 ties the head of every new model
        made.lm_head.weight = nn.Parameter(torch.empty_like(made.lm_head.weight))
    parameters = dict(model.named_parameters())
    weights = {e.theirs: e.export(parameters[e.ours].detach()).clone() for e in t5_huggingface.weight_map(model)}
    missing, unexpected = made.load_state_dict(weights, strict=False)
    assert not unexpected and all("embed_tokens" in name or "lm_head" in name for name in missing)
    return made


@pytest.mark.parametrize("version", SHAPES)
def test_logits_are_those_of_transformers(version):
    config, model = make(version)
    reference = theirs(config, model)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randint(0, VOCABULARY, (2, n), generator=generator) for n in (200, 61))
    with torch.no_grad():
        expected = reference(input_ids=inputs, decoder_input_ids=targets).logits
        found = model.head.logits(model(inputs, targets))
    assert (found - expected).abs().max() < 1e-5


def test_padding_of_the_encoder_is_masked_as_in_transformers():
    config, model = make("v1.0")
    reference = theirs(config, model)
    inputs, targets = torch.randint(3, VOCABULARY, (1, 30)), torch.randint(3, VOCABULARY, (1, 9))
    documents = (torch.arange(30) < 21).long()[None] - 1
    with torch.no_grad():
        expected = reference(input_ids=inputs, attention_mask=documents + 1, decoder_input_ids=targets).logits
        found = model.head.logits(model(inputs, targets, documents, torch.zeros_like(targets)))
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_transformers(bidirectional):
    reference = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    distances = torch.arange(-700, 701)
    for buckets, furthest in ((32, 128), (16, 64)):
        found = relative_bucket(distances, bidirectional=bidirectional, buckets=buckets, max_distance=furthest)
        assert torch.equal(found, reference(distances, bidirectional, buckets, furthest))


def test_packed_documents_are_computed_as_if_alone():
    _, model = make("v1.1")
    sizes = [(11, 5), (20, 9)]
    inputs = [torch.randint(0, VOCABULARY, (1, n)) for n, _ in sizes]
    targets = [torch.randint(0, VOCABULARY, (1, n)) for _, n in sizes]
    padding = torch.zeros(1, 3, dtype=torch.long)
    numbers = [
        torch.cat([torch.full((1, pair[i]), n) for n, pair in enumerate(sizes)] + [padding - 1], dim=1) for i in (0, 1)
    ]
    with torch.no_grad():
        packed = model(torch.cat([*inputs, padding], 1), torch.cat([*targets, padding], 1), *numbers)
        alone = torch.cat([model(a, b) for a, b in zip(inputs, targets, strict=True)], dim=1)
    assert packed.isfinite().all()
    assert (packed[:, : alone.shape[1]] - alone).abs().max() < 1e-5


def test_every_weight_learns_and_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        _, model = make("v1.0", activation_checkpointing=checkpointing)
        model.train()
        tokens = torch.arange(60).view(2, 30)
        numbers = torch.where(torch.arange(30) < 25, 0, -1).expand(2, 30)
        model.head(model(tokens, tokens, numbers, numbers), tokens).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients[0].values())
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_loss_at_the_beginning_is_that_of_guessing():
    for version in SHAPES:
        _, model = make(version)
        tokens = torch.randint(0, VOCABULARY, (4, 64))
        loss = model.head(model(tokens, tokens.roll(1, 1)), tokens.flip(0)) / tokens.numel()
        assert 5.0 < loss.item() < 8.0  # log(200) = 5.3


@pytest.mark.parametrize("preset", PUBLISHED)
def test_parameters_of_the_presets_are_the_published_ones(preset):
    config = load_config([f"model={preset}", "objective=span_corruption", "data.path=x"]).model
    with torch.device("meta"):
        vocabulary = {"mt5": 250112, "byt5": 384}.get(preset.split("_")[0], 32128)
        model = build(config, vocabulary, MetaLayers())
        theirs_config = t5_huggingface.huggingface_config(model, {"pad": 0, "eos": 1})
        reference = transformers.T5ForConditionalGeneration(transformers.T5Config(**theirs_config))
    untied = 0 if config.tie_embeddings else vocabulary * config.hidden_size
    assert model.published_parameters() == PUBLISHED[preset]
    assert sum(p.numel() for p in reference.parameters()) + untied == PUBLISHED[preset]
