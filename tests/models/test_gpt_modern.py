"""The modern decoder against transformers' LlamaForCausalLM, and GPT-2 against GPT2LMHeadModel."""

import pytest
import torch
import transformers

from data_pipeline.common.errors import InputError
from pretraining.config import load_config
from pretraining.models.gpt import huggingface as gpt_huggingface
from pretraining.models.gpt.config import GPTConfig
from pretraining.models.shapes import MetaLayers
from tests.building import build

VOCABULARY = 200
SHAPE = {"name": "gpt", "num_layers": 3, "hidden_size": 48, "num_heads": 4, "max_seq_len": 64}
MODERN = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": False}
CASES = {
    "gpt2": {},
    "gpt2 untied": {"tie_embeddings": False},
    "llama": {**MODERN, "tie_embeddings": False},
    "llama grouped": {**MODERN, "num_kv_heads": 2, "intermediate_size": 80, "rope_theta": 500.0, "norm_eps": 1e-6},
}
PUBLISHED = {"llama_160m": 162_417_408, "llama_1b": 1_100_048_384, "llama_7b": 6_738_415_616}  # vocabulary 32000


def counterpart(model):
    values = gpt_huggingface.huggingface_config(model, {"bos": 1, "eos": 2, "pad": 0})
    kind = {"gpt2": transformers.GPT2Config, "llama": transformers.LlamaConfig}[values["model_type"]]
    return getattr(transformers, values["architectures"][0])(kind(**values))


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case):
    config = GPTConfig(**SHAPE, **CASES[case])
    model = build(config, VOCABULARY).eval()
    model.initialize(1)
    for parameter in model.parameters():  # biases and norms that differ from where they begin
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    for table in (model.head.weight, model.token_embedding.weight):
        table.data[VOCABULARY:] = 0
    reference, parameters = counterpart(model).eval(), dict(model.named_parameters())
    weights = {e.theirs: e.export(parameters[e.ours].detach()).clone() for e in gpt_huggingface.weight_map(model)}
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    tokens = torch.randint(0, VOCABULARY, (2, 64), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert (model.head.logits(model(tokens)) - reference(tokens).logits).abs().max() < 1e-5
    for entry in gpt_huggingface.weight_map(model):
        assert torch.equal(entry.restore(weights[entry.theirs]), parameters[entry.ours])


@pytest.mark.parametrize(
    "keys", [{**MODERN, "bias": True}, {"norm": "rmsnorm"}, {"num_kv_heads": 2}, {**MODERN, "positions": "learned"}]
)
def test_a_combination_without_a_counterpart_is_refused_by_name(keys):
    with pytest.raises(InputError, match=r"model\.positions=.* no Hugging Face model"):
        gpt_huggingface.huggingface_config(build(GPTConfig(**SHAPE, **keys), VOCABULARY), {})


@pytest.mark.parametrize("preset", PUBLISHED)
def test_parameters_of_the_presets_are_the_published_ones(preset):
    config = load_config([f"model={preset}", "data.path=x"]).model
    with torch.device("meta"):
        model = build(config, 32000, MetaLayers())
        reference = counterpart(model)
    assert model.published_parameters() == PUBLISHED[preset]
    assert sum(p.numel() for p in reference.parameters()) == PUBLISHED[preset]
