"""RoBERTa, XLM-R and ALBERT as options of the native encoder, beside transformers' models."""

import pytest
import torch

from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import InputError
from pretraining.config import RunConfig
from pretraining.models.bert.config import AlbertConfig, BertConfig, RobertaConfig
from pretraining.models.registry import huggingface_family
from tests import building

IDS = {"pad": 1, "cls": 2, "sep": 3}
SHAPE = {"num_layers": 3, "hidden_size": 48, "num_heads": 4, "max_seq_len": 64}
SMALL = {
    "roberta": (RobertaConfig(name="roberta", **SHAPE), False),
    "roberta with a segment": (RobertaConfig(name="roberta", segments=1, **SHAPE), False),
    "xlm_roberta": (RobertaConfig(name="xlm_roberta", **SHAPE), False),
    "albert": (AlbertConfig(name="albert", embedding_size=16, **SHAPE), True),
    "albert without pairs": (AlbertConfig(name="albert", embedding_size=16, **SHAPE), False),
    "unilm": (BertConfig(name="bert", segments=6, **SHAPE), True),
}


def preset(name):
    return compose_config("pretrain", [f"model={name}", "objective=masked_lm", "data.path=x"], RunConfig).model


def build(config, vocab_size=300, pairs=False):
    model = building.build(config, vocab_size, pairs=pairs)
    model.initialize(1)
    return model


# transformers' own counts of the published configs. RoBERTa's table has two rows of positions more there, before the
# first one, and a segment: 1 row each that the authors' code does not train.
@pytest.mark.parametrize(
    "name, vocab_size, published",
    [
        ("roberta_base", 50265, 124_697_433),
        ("roberta_large", 50265, 355_412_057),
        ("xlm_roberta_base", 250_002, 278_295_186),
        ("xlm_roberta_large", 250_002, 560_142_482),
        ("albert_base", 30000, 11_813_810),
        ("albert_large", 30000, 17_847_474),
        ("albert_xlarge", 30000, 59_021_490),
        ("albert_xxlarge", 30000, 223_158_450),
    ],
)
def test_parameter_counts_are_the_published_ones(name, vocab_size, published):
    transformers = pytest.importorskip("transformers")
    config = preset(name)
    with torch.device("meta"):
        ours = building.build(config, vocab_size, pairs=config.name == "albert")
        values = huggingface_family(config.name).huggingface_config(ours, IDS)
        theirs = getattr(transformers, values["architectures"][0])(transformers.AutoConfig.for_model(**values))
    extra = 0 if config.name == "albert" else 3 * config.hidden_size
    assert ours.published_parameters() + extra == theirs.num_parameters() == published


@pytest.mark.parametrize("name, published", [("macbert_base", 102), ("macbert_large", 324)])
def test_macbert_has_as_many_parameters_as_published(name, published):
    """In millions (ymcui/MacBERT, README.md), with the 21,128 pieces of Chinese BERT; without heads."""
    with torch.device("meta"):
        ours = building.build(preset(name), 21128)
    heads = sum(p.numel() for head in ("head", "pair_head") for p in ours.get_submodule(head).parameters())
    table = ours.token_embedding.weight.numel()  # which the head has, too
    assert round((ours.published_parameters() - heads + table) / 1e6) == published


@pytest.fixture(scope="module", params=SMALL)
def pair(request):
    """(theirs, ours): random weights, biases and norms among them; what must be zero is."""
    transformers = pytest.importorskip("transformers")
    config, pairs = SMALL[request.param]
    ours, family = build(config, pairs=pairs), huggingface_family(config.name)
    values = family.huggingface_config(ours, IDS)
    made = transformers.AutoConfig.for_model(**values, attn_implementation="eager")
    theirs = getattr(transformers, values["architectures"][0])(made).eval()
    entries, state = family.weight_map(ours), theirs.state_dict()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        wanted = dict(ours.named_parameters()) | dict(ours.named_buffers())
        assert sorted(entry.ours for entry in entries) == sorted(wanted)
        for entry in entries:
            if entry.ours == "no_segment":
                state[entry.theirs].zero_()
            wanted[entry.ours].copy_(entry.restore(state[entry.theirs]))
            back = entry.export(wanted[entry.ours])
            assert back.shape == state[entry.theirs].shape
            assert torch.equal(back, state[entry.theirs]) or entry.ours == "position_embedding.weight"
    return theirs, ours.eval(), values


def test_logits_equal_transformers(pair):
    theirs, ours, values = pair
    tokens = torch.randint(5, 300, (2, 50))
    lengths = torch.tensor([[50], [30]])
    present = torch.arange(50) < lengths
    tokens[~present] = IDS["pad"]
    segments = torch.arange(50).expand(2, 50) % values["type_vocab_size"]
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=present.long(), token_type_ids=segments)
        hidden = ours(tokens, segments, None, present.long() - 1)
        logits = ours.head.logits(hidden, torch.arange(50).expand(2, 50))
        found = expected.prediction_logits if "pair_head" in ours.head_names else expected.logits
        assert (logits - found)[present].abs().max() < 2e-5
        if "pair_head" in ours.head_names:
            pairs = expected["sop_logits" if ours.config.name == "albert" else "seq_relationship_logits"]
            assert (ours.pair_head(hidden) - pairs).abs().max() < 2e-5


def test_config_goes_to_transformers_and_back(pair):
    _, ours, values = pair
    back = huggingface_family(ours.config.name).from_huggingface_config(values)
    kept = {key: getattr(ours.config, key) for key in back if key not in ("vocab_size", "intermediate_size")}
    assert kept.items() <= back.items() and back["vocab_size"] == 300


@pytest.mark.parametrize(
    "config, refused",
    [
        (BertConfig("bert", 2, 48, 4, 64, segments=0), "segments=0"),
        (BertConfig("bert", 2, 48, 4, 64, shared_layers=True), "shared_layers=true"),
        (BertConfig("bert", 2, 48, 4, 64, embedding_size=16), "embedding_size=16"),
        (RobertaConfig("roberta", 2, 48, 4, 64, segments=2), "segments=2"),
        (AlbertConfig("albert", 2, 48, 4, 64, shared_layers=False), "shared_layers=false"),
        (AlbertConfig("albert", 2, 48, 4, 64, norm_position="pre"), "norm_position=pre"),
    ],
)
def test_what_transformers_has_not_is_refused_by_name(config, refused):
    with pytest.raises(InputError, match=rf"model\.{refused} is not supported by Hugging Face's {config.name}"):
        huggingface_family(config.name).huggingface_config(build(config), IDS)


def test_roberta_has_no_pairs_to_export():
    with pytest.raises(InputError, match=r"objective\.pairing is not supported by Hugging Face's roberta"):
        huggingface_family("roberta").huggingface_config(build(SMALL["roberta"][0], pairs=True), IDS)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_shared_layer_gets_the_gradients_of_all_layers(checkpointing):
    """Those of as many layers of its own weights each, summed."""
    config = AlbertConfig(name="albert", embedding_size=16, activation_checkpointing=checkpointing, **SHAPE)
    apart = AlbertConfig(name="albert", embedding_size=16, shared_layers=False, **SHAPE)
    shared, own = build(config), build(apart)
    weights = dict(shared.named_parameters())
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            parts = name.split(".")
            parameter.copy_(weights[".".join(["blocks", "0", *parts[2:]]) if parts[0] == "blocks" else name])
    tokens, positions, labels = torch.randint(0, 300, (4, 20)), torch.tensor([[3, 5]] * 4), torch.tensor([[7, 9]] * 4)
    for model in (shared, own):
        model.train()
        model.head(model(tokens), positions, labels).backward()
    for name, parameter in shared.named_parameters():
        if name.startswith("blocks.0."):
            rest = name.removeprefix("blocks.0.")
            expected = sum(own.get_parameter(f"blocks.{i}.{rest}").grad for i in range(3))
        else:
            expected = own.get_parameter(name).grad
        assert torch.allclose(parameter.grad, expected, atol=1e-5), name


def test_a_shared_layer_lies_below_all_others():
    model = build(SMALL["albert"][0])
    depths = model.parameter_depths()
    assert {depths[name] for name in depths if name.startswith("blocks.")} == {3}
    assert depths["token_embedding.weight"] == depths["embedding_map.weight"] == 4 and depths["head.norm.bias"] == 0


def test_flops_count_a_shared_layer_as_often_as_it_is_used():
    """torch's FlopCounterMode finds 5.9e8 a token in transformers' ALBERT-base, whose head all of them pass."""
    config = preset("albert_base")
    with torch.device("meta"):
        ours = building.build(config, 30000)
    rest = 0.85 * 6 * 128 * (768 + 30000)  # 15% pass it
    assert ours.flops_per_token(512) + rest == pytest.approx(5.9e8, rel=0.003)
