import pytest
import torch

from data_pipeline.common.compose import compose_config
from pretraining.config import RunConfig
from pretraining.models import loss as vocabulary_loss
from pretraining.models.gpt.config import GPTConfig
from pretraining.models.gpt.huggingface import weight_map
from pretraining.models.heads import TokenHead
from pretraining.models.loss import IGNORED
from pretraining.parallel.layers import PlainLayers
from tests.building import build

GPT1_VOCABULARY, GPT2_VOCABULARY = 40478, 50257


def preset(name):
    return compose_config("pretrain", [f"model={name}", "data.path=x"], RunConfig).model


@pytest.mark.parametrize(
    "name, published",
    [
        ("gpt2_small", 124_439_808),
        ("gpt2_medium", 354_823_168),
        ("gpt2_large", 774_030_080),
        ("gpt2_xl", 1_557_611_200),
        ("gpt1", 116_534_784),
    ],
)
def test_parameter_counts_are_the_published_ones(name, published):
    with torch.device("meta"):
        model = build(preset(name), GPT1_VOCABULARY if name == "gpt1" else GPT2_VOCABULARY)
    assert model.published_parameters() == published


@pytest.mark.parametrize(
    ("name", "published"),
    [  # Brown et al. 2020, table 2.1, as printed; in billions
        ("gpt3_125m", 0.125),
        ("gpt3_350m", 0.356),
        ("gpt3_760m", 0.760),
        ("gpt3_1_3b", 1.316),
        ("gpt3_2_7b", 2.651),
        ("gpt3_6_7b", 6.658),
        ("gpt3_13b", 12.853),
        ("gpt3_175b", 174.6),
    ],
)
def test_the_sizes_of_gpt3_are_those_of_their_table(name, published):
    """Table D.1 prints 125M, 356M, 760M, 1,320M, 2,650M, 6,660M, 12,850M and 174,600M."""
    with torch.device("meta"):
        model = build(preset(name), GPT2_VOCABULARY)
    assert model.published_parameters() / 1e9 == pytest.approx(published, rel=0.002)


def test_post_norm_logits_equal_transformers_gpt1():
    transformers = pytest.importorskip("transformers")
    config = transformers.OpenAIGPTConfig(vocab_size=300, n_positions=64, n_embd=48, n_layer=3, n_head=4)
    theirs = transformers.OpenAIGPTLMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases are 0, norms 1 at first
    ours = build(GPTConfig("gpt", 3, 48, 4, 64, norm_position="post"), 300).eval()
    state = {**theirs.state_dict()}
    tensors = ours.state_dict()
    with torch.no_grad():
        for entry in weight_map(ours):
            tensors[entry.ours].copy_(entry.restore(state[entry.theirs]))
    tokens = torch.randint(0, 300, (2, 50))
    with torch.no_grad():
        difference = (ours.head.logits(ours(tokens)) - theirs(tokens).logits).abs().max()
    assert difference < 2e-5


def test_gpt1_begins_with_equal_spreads():
    model = build(GPTConfig("gpt", 2, 64, 4, 128, norm_position="post"), 100)
    model.initialize(7)
    weights = model.state_dict()
    for name in ("blocks.0.mlp.down.weight", "position_embedding.weight", "blocks.1.attention.output.weight"):
        assert abs(weights[name].std() - 0.02) < 0.001
    assert not any(name.startswith("final_norm") for name in weights)


def test_logits_equal_transformers():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=300, n_positions=64, n_embd=48, n_layer=3, n_head=4, attn_implementation="eager"
        )
    ).eval()
    ours = build(GPTConfig("gpt", 3, 48, 4, 64), 300).eval()
    copy_gpt2(theirs, ours)
    tokens = torch.randint(0, 300, (2, 50))
    with torch.no_grad():
        difference = (ours.head.logits(ours(tokens)) - theirs(tokens).logits).abs().max()
    assert difference < 1e-5


def copy_gpt2(theirs, ours):
    """Hugging Face's Conv1D is [in, out], its columns ordered q | k | v; ours are rows [head, (q, k, v), head_dim]."""
    state = {k.removeprefix("transformer."): v for k, v in theirs.state_dict().items()}
    heads, hidden = ours.config.num_heads, ours.config.hidden_size

    def fused(tensor):
        return tensor.reshape(3, heads, hidden // heads, -1).transpose(0, 1).reshape(3 * hidden, -1)

    with torch.no_grad():
        ours.token_embedding.weight.zero_()[:300] = state["wte.weight"]
        ours.position_embedding.weight.copy_(state["wpe.weight"])
        ours.final_norm.load_state_dict({"weight": state["ln_f.weight"], "bias": state["ln_f.bias"]})
        for i, block in enumerate(ours.blocks):
            s = {k.removeprefix(f"h.{i}."): v for k, v in state.items() if k.startswith(f"h.{i}.")}
            for norm, name in ((block.attention_norm, "ln_1"), (block.mlp_norm, "ln_2")):
                norm.load_state_dict({"weight": s[f"{name}.weight"], "bias": s[f"{name}.bias"]})
            block.attention.qkv.weight.copy_(fused(s["attn.c_attn.weight"].T))
            block.attention.qkv.bias.copy_(fused(s["attn.c_attn.bias"])[:, 0])
            for layer, name in (
                (block.attention.output, "attn.c_proj"),
                (block.mlp.up, "mlp.c_fc"),
                (block.mlp.down, "mlp.c_proj"),
            ):
                layer.weight.copy_(s[f"{name}.weight"].T)
                layer.bias.copy_(s[f"{name}.bias"])


def test_initialization_depends_on_seed_and_name_alone():
    config = GPTConfig("gpt", 2, 64, 4, 32)
    models = [build(config, 100) for _ in range(2)]
    torch.manual_seed(5)
    for model in models:
        model.initialize(7)
        torch.rand(3)
    one, two = (m.state_dict() for m in models)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert abs(one["blocks.0.mlp.up.weight"].std() - 0.02) < 0.002
    assert abs(one["blocks.0.mlp.down.weight"].std() - 0.01) < 0.001
    assert one["token_embedding.weight"][100:].abs().sum() == 0


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_chunked_loss_is_exact(monkeypatch, rows):
    """Against float64 cross-entropy over all logits, in value and gradients, whatever the chunk."""
    monkeypatch.setattr(vocabulary_loss, "LOGITS_IN_MEMORY", rows * 128)
    hidden = torch.randn(3, 11, 16, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(128, 16))
    labels = torch.randint(0, 100, (3, 11))
    labels[0, :4] = IGNORED
    loss = TokenHead(PlainLayers(), 100, weight)(hidden, labels)
    loss.backward()
    exact_hidden, exact_weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    logits = (exact_hidden @ exact_weight.T)[..., :100]
    exact = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    exact.backward()
    assert abs(loss.item() / exact.item() - 1) < 1e-6
    for ours, reference in ((hidden, exact_hidden), (weight, exact_weight)):
        assert (ours.grad - reference.grad).abs().max() < 1e-4
    assert weight.grad[100:].abs().sum() == 0


def test_activation_checkpointing_changes_nothing():
    grads = []
    for checkpointing in (False, True):
        model = build(GPTConfig("gpt", 2, 32, 2, 16, activation_checkpointing=checkpointing), 50)
        model.initialize(0)
        model.head(model(torch.arange(16)[None]), torch.arange(16)[None]).backward()
        grads.append(model.blocks[0].mlp.up.weight.grad)
    assert torch.equal(*grads)
