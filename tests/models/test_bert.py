import pytest
import torch

from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import InputError
from pretraining.config import RunConfig
from pretraining.models import loss as vocabulary_loss
from pretraining.models.bert.config import BertConfig
from pretraining.models.bert.huggingface import from_huggingface_config, huggingface_config, weight_map
from pretraining.models.heads import TokenHead
from pretraining.models.loss import IGNORED
from pretraining.parallel.layers import PlainLayers
from tests import building

BERT_VOCABULARY = 30522
SMALL = BertConfig("bert", 3, 48, 4, 64)


def preset(name):
    return compose_config("pretrain", [f"model={name}", "objective=masked_lm", "data.path=x"], RunConfig).model


def build(config=SMALL, vocab_size=300, seed=1):
    model = building.build(config, vocab_size)
    model.initialize(seed)
    return model


def restored(theirs, config, vocab_size):
    """Ours with the weights of theirs, through the map."""
    ours = build(config, vocab_size)
    state, wanted = theirs.state_dict(), dict(ours.named_parameters())
    maps = weight_map(ours)
    assert sorted(m.ours for m in maps) == sorted(wanted)
    with torch.no_grad():
        for m in maps:
            wanted[m.ours].copy_(m.restore(state[m.theirs]))
            assert torch.equal(m.export(wanted[m.ours]), state[m.theirs])
    return ours.eval()


@pytest.fixture(scope="module")
def pair():
    """(theirs, ours): random weights, biases and norms among them."""
    transformers = pytest.importorskip("transformers")
    values = huggingface_config(build(), {"pad": 0})
    config = transformers.BertConfig(**values, attn_implementation="eager")
    theirs = transformers.BertForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return theirs, restored(theirs, SMALL, 300)


@pytest.mark.parametrize("name, published", [("bert_base", 110_106_428), ("bert_large", 336_226_108)])
def test_parameter_counts_are_the_published_ones(name, published):
    transformers = pytest.importorskip("transformers")
    config = preset(name)
    with torch.device("meta"):
        ours = building.build(config, BERT_VOCABULARY)
        values = huggingface_config(ours, {"pad": 0})
        theirs = transformers.BertForPreTraining(transformers.BertConfig(**values))
    assert ours.published_parameters() == theirs.num_parameters() == published


@pytest.mark.parametrize(
    ("name", "vocabulary", "pairs", "published"),
    [
        ("mbert", 119547, True, 178_566_653),  # bert-base-multilingual-cased: 178M, 179M by other tables
        ("xlm", 95000, False, 250_109_720),  # 250M: Conneau et al. 2019, "XLM-R", table 5
    ],
)
def test_multilingual_counts_are_the_published_ones(name, vocabulary, pairs, published):
    with torch.device("meta"):
        assert building.build(preset(name), vocabulary, pairs=pairs).published_parameters() == published


@pytest.mark.parametrize("padded", [False, True])
def test_logits_equal_transformers(pair, padded):
    theirs, ours = pair
    tokens = torch.randint(0, 300, (2, 50))
    lengths = torch.tensor([[50], [30]]) if padded else torch.tensor([[50], [50]])
    present = torch.arange(50) < lengths
    segments = (torch.arange(50) >= lengths // 2).long() if padded else torch.zeros_like(tokens)
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=present.long(), token_type_ids=segments)
        hidden = ours(tokens, segments if padded else None, None, present.long() - 1 if padded else None)
        logits = ours.head.logits(hidden, torch.arange(50).expand(2, 50))
        assert (logits - expected.prediction_logits)[present].abs().max() < 1e-5
        assert (ours.pair_head(hidden) - expected.seq_relationship_logits).abs().max() < 1e-5


def test_config_goes_to_transformers_and_back():
    values = huggingface_config(build(), {"pad": 0})
    back = BertConfig(**from_huggingface_config(values))
    assert back == BertConfig("bert", 3, 48, 4, 64, vocab_size=300, intermediate_size=192)
    with pytest.raises(InputError, match="hidden_act='relu'"):
        from_huggingface_config({**values, "hidden_act": "relu"})
    with pytest.raises(InputError, match="norm_position=pre"):
        huggingface_config(build(BertConfig("bert", 3, 48, 4, 64, norm_position="pre")), {"pad": 0})


def test_masked_positions_only_equal_all_positions():
    model = build()
    hidden = model(torch.randint(0, 300, (3, 20)))
    positions = torch.tensor([[1, 4, 19], [0, 7, 0], [2, 0, 0]])
    labels = torch.tensor([[5, 6, 7], [8, 9, IGNORED], [10, IGNORED, IGNORED]])
    everywhere = torch.full((3, 20), IGNORED)
    for row, column, label in zip([0, 0, 0, 1, 1, 2], [1, 4, 19, 0, 7, 2], range(5, 11), strict=True):
        everywhere[row, column] = label
    logits = model.head.logits(hidden, torch.arange(20).expand(3, 20))
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), everywhere.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    assert abs(model.head(hidden, positions, labels) - expected) < 1e-4
    assert torch.equal(model.head.logits(hidden, positions)[1, 1], logits[1, 7])


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_chunked_loss_with_a_bias_is_exact(monkeypatch, rows):
    """Against float64 cross-entropy over all logits, in value and gradients, whatever the chunk."""
    monkeypatch.setattr(vocabulary_loss, "LOGITS_IN_MEMORY", rows * 128)
    head = TokenHead(PlainLayers(), 100, torch.nn.Parameter(torch.randn(128, 16)), bias=True)
    torch.nn.init.normal_(head.bias)
    hidden, labels = torch.randn(3, 11, 16, requires_grad=True), torch.randint(0, 100, (3, 11))
    labels[0, :4] = IGNORED
    loss = head(hidden, labels)
    (2 * loss).backward()
    exact = [t.detach().double().requires_grad_() for t in (hidden, head.weight, head.bias)]
    logits = (exact[0] @ exact[1].T + exact[2])[..., :100]
    reference = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    (2 * reference).backward()
    assert abs(loss.item() / reference.item() - 1) < 1e-6
    for ours, theirs in zip((hidden, head.weight, head.bias), exact, strict=True):
        assert (ours.grad - theirs.grad).abs().max() < 1e-4
    assert head.bias.grad[100:].abs().sum() == 0
    assert torch.allclose(head.logits(hidden), logits.float(), atol=1e-4)


def test_initialization_is_a_normal_cut_at_two_deviations():
    weights = build(BertConfig("bert", 1, 128, 4, 64), 500).state_dict()
    for name, tensor in weights.items():
        if tensor.ndim == 1:
            assert torch.all(tensor == (1.0 if name.endswith("norm.weight") else 0.0)), name
        else:
            assert tensor.abs().max() <= 0.04, name
    table = weights["token_embedding.weight"]
    assert table[:500].std() == pytest.approx(0.02 * 0.8796, rel=0.02)  # of a normal distribution cut at 2
    assert table[:500].mean().abs() < 2e-4 and table[500:].abs().sum() == 0


@pytest.mark.parametrize("norm_position", ["post", "pre"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_has_a_gradient(norm_position, checkpointing):
    model = build(BertConfig("bert", 2, 32, 4, 16, norm_position=norm_position, activation_checkpointing=checkpointing))
    hidden = model(torch.randint(0, 300, (4, 16)), torch.arange(16).expand(4, 16) // 8)
    loss = model.head(hidden, torch.tensor([[3, 5]] * 4), torch.tensor([[7, 9]] * 4))
    loss = loss + torch.nn.functional.cross_entropy(model.pair_head(hidden), torch.tensor([0, 1, 1, 0]))
    loss.backward()
    for name, parameter in model.named_parameters():
        if not name.endswith("attention.key.bias"):  # softmax takes no notice of it: zero but for rounding
            assert parameter.grad.abs().max() > 1e-9, name


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_packed_documents_are_as_if_alone(norm_position):
    model = build(BertConfig("bert", 2, 32, 4, 16, norm_position=norm_position)).eval()
    first, second = torch.randint(0, 300, (1, 6)), torch.randint(0, 300, (1, 7))
    tokens = torch.cat([first, second, torch.zeros(1, 3, dtype=torch.long)], 1)
    documents = torch.tensor([[0] * 6 + [1] * 7 + [-1] * 3])
    positions = torch.tensor([[*range(6), *range(7), 0, 0, 0]])
    packed = model(tokens, None, positions, documents)
    assert (packed[:, :6] - model(first)).abs().max() < 1e-5
    assert (packed[:, 6:13] - model(second)).abs().max() < 1e-5
    assert packed.isfinite().all()
