"""The adapter over transformers: what holds for every architecture in its table."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from data_pipeline.common.errors import InputError
from pretraining.config import load_config
from pretraining.hub.init_from import HuggingFaceFolder
from pretraining.models.huggingface import tracing
from pretraining.models.huggingface.architectures import KNOWN
from pretraining.models.huggingface.config import HuggingFaceConfig
from pretraining.models.huggingface.huggingface import Counterpart
from pretraining.models.huggingface.settings import filled_config
from pretraining.models.registry import build_model
from pretraining.models.roles import Role
from pretraining.models.vocabulary import Vocabulary
from pretraining.parallel.layers import PlainLayers
from tests.models.huggingface import LENGTH, SHAPES, SIZE, TEXT, built, inputs, loss, tiny

TEXTS = [name for name, facts in KNOWN.items() if facts.role is not Role.IMAGE_ENCODER]
PACKED = [name for name, facts in KNOWN.items() if facts.packs]
THEIRS = {"tokens": "input_ids", "inputs": "input_ids", "targets": "decoder_input_ids"}


@pytest.mark.parametrize("name", KNOWN)
def test_initial_weights_depend_on_the_seed_and_the_names_alone(name):
    first = {n: p.detach().clone() for n, p in built(tiny(name)).named_parameters()}
    torch.rand(5)  # whatever the process drew before
    again, other = built(tiny(name)), built(tiny(name), seed=2)
    assert all(torch.equal(p, first[n]) for n, p in again.named_parameters())
    assert any(not torch.equal(p, first[n]) for n, p in other.named_parameters())


@pytest.mark.parametrize("name", TEXTS)
def test_rows_that_nobody_uses_are_zero(name):
    model = built(tiny(name))
    tables = [p for n, p in model.named_parameters() if model.padded_rows(n)]
    assert tables and all(len(p) == 384 and not p[SIZE - 20 :].any() for p in tables)
    assert model.published_parameters() == sum(p.numel() for p in model.parameters()) - 84 * sum(
        p[0].numel() for p in tables
    )
    padding = model.token_embedding.padding_idx
    assert padding is None or not model.token_embedding.weight[padding].any()


@pytest.mark.parametrize("name", TEXTS)
def test_the_head_makes_the_logits_of_the_class(name):
    model = built(tiny(name)).eval()
    arguments = inputs(model.facts.role)
    with torch.no_grad():
        outputs = model.network(**{THEIRS[key]: value for key, value in arguments.items()})
        hidden = model(**arguments)
        if model.facts.role is Role.TOKEN_ENCODER:
            positions = torch.arange(LENGTH).expand(2, LENGTH)
            ours = model.head.logits(hidden, positions)
        else:
            ours = model.head.logits(hidden)
    theirs = outputs["prediction_logits" if "prediction_logits" in outputs else "logits"]
    assert torch.equal(ours[..., : SIZE - 20], theirs[..., : SIZE - 20])
    assert ours.shape[-1] == SIZE and torch.isinf(ours[..., SIZE - 20 :]).all()
    if model.facts.pair_logits:
        assert torch.equal(model.pair_head(hidden), outputs[model.facts.pair_logits])


@pytest.mark.parametrize("name", KNOWN)
def test_every_parameter_that_is_trained_gets_a_gradient(name):
    model = built(tiny(name))
    loss(model, inputs(model.facts.role)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == [n for n, p in model.named_parameters() if not p.requires_grad]


@pytest.mark.parametrize("name", ["BertForMaskedLM", "RobertaForMaskedLM"])
def test_a_class_with_one_row_of_segments_is_not_told_them(name):
    """Published RoBERTas have one."""
    config = tiny(name)
    model = built(replace(config, settings={**config.settings, "type_vocab_size": 1})).eval()
    tokens = torch.arange(7, 7 + LENGTH)[None]
    assert torch.equal(model(tokens=tokens, segments=torch.ones_like(tokens)), model(tokens=tokens))


@pytest.mark.parametrize("name", PACKED)
def test_nothing_leaks_between_packed_documents(name):
    """The gradient of a document's features by the embedding of another one's tokens is exactly 0, and the features are
    those of the document alone."""
    model = built(tiny(name)).eval()
    tokens = torch.arange(7, 7 + LENGTH)[None]
    border = 12
    documents = (torch.arange(LENGTH) >= border).long()[None]
    positions = torch.cat([torch.arange(border), torch.arange(LENGTH - border)])[None]
    features = model(tokens=tokens, positions=positions, documents=documents)[:, :LENGTH]
    for part, other in ((slice(0, border), slice(border, None)), (slice(border, None), slice(0, border))):
        (gradient,) = torch.autograd.grad(
            features[:, part].square().sum(), model.token_embedding.weight, retain_graph=True
        )
        assert not gradient[tokens[0, other]].any() and gradient[tokens[0, part]].any()
        alone = model(tokens=tokens[:, part])[:, : tokens[:, part].shape[1]]
        torch.testing.assert_close(features[:, part], alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", [n for n in TEXTS if n not in PACKED and KNOWN[n].role is not Role.ENCODER_DECODER])
def test_nothing_is_seen_of_padding(name):
    model = built(tiny(name))
    tokens, length = torch.arange(7, 7 + LENGTH)[None], 20
    documents = torch.where(torch.arange(LENGTH) < length, 0, -1)[None]
    features = model(tokens=tokens, documents=documents)[:, :length]
    features.square().sum().backward()
    gradient = model.token_embedding.weight.grad
    assert not gradient[tokens[0, length:]].any() and gradient[tokens[0, :length]].any()


@pytest.mark.parametrize("name", [n for n in TEXTS if KNOWN[n].role is Role.ENCODER_DECODER])
def test_a_decoder_sees_neither_padding_nor_the_future(name):
    model = built(tiny(name)).eval()
    inputs, targets = torch.arange(7, 7 + LENGTH)[None], torch.arange(107, 107 + LENGTH)[None]
    read, written = (torch.where(torch.arange(LENGTH) < n, 0, -1)[None] for n in (20, 16))
    features = model(inputs, targets, read, written)
    features[:, :10].square().sum().backward()
    gradient = model.token_embedding.weight.grad
    assert gradient[inputs[0, :20]].any() and gradient[targets[0, :10]].any()
    assert not gradient[inputs[0, 20:]].any() and not gradient[targets[0, 10:]].any()
    torch.testing.assert_close(features[:, :16], model(inputs[:, :20], targets[:, :16]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", KNOWN)
def test_depths_follow_the_order_in_which_modules_act(name):
    """The lower of two modules acts first, but for modules that a block repeats and heads."""
    model = built(tiny(name)).eval()
    assert model.parameter_depths().keys() == dict(model.named_parameters()).keys()
    order: list[torch.nn.Module] = []
    for module in model.network.modules():
        module.register_forward_pre_hook(lambda m, _: order.append(m))
    model(**inputs(model.facts.role))
    blocks = [block for stack in model.block_stacks() for block in stack.blocks]
    inside = {part for block in blocks for part in block.modules()}
    for stack in model.block_stacks():
        first, last = order.index(stack.blocks[0]), order.index(stack.blocks[-1])
        assert all(order.index(part) < first for part in stack.inputs if part in order)
        assert all(order.index(part) > last for part in stack.outputs if part in order and part not in inside)


def test_gpt2_has_the_stated_flops():
    """As the native family counts them, tests/golden/flops.json."""
    config = HuggingFaceConfig(name="huggingface", architecture="GPT2LMHeadModel", max_seq_len=1024)
    vocabulary = Vocabulary(50257, TEXT.special_ids)
    assert 3 * tracing.forward_flops_per_token(config, vocabulary, 1024) == 854_438_400


def test_a_window_as_long_as_the_sequence_is_full_attention(tmp_path):
    """Longformer, started from RoBERTa's weights, computes what RoBERTa does; its positions are RoBERTa's, repeated."""
    roberta = built(tiny("RobertaForMaskedLM", max_seq_len=16)).eval()
    short = Counterpart(roberta.config)
    write_folder(tmp_path, short, roberta)
    config = tiny("LongformerForMaskedLM", settings={"attention_window": 2 * LENGTH, "type_vocab_size": 2})
    longformer = built(config, seed=2).eval()
    folder = HuggingFaceFolder(str(tmp_path), longformer, SIZE, None)
    folder.load_into(longformer)
    tokens = torch.arange(7, 7 + 16)[None]
    torch.testing.assert_close(longformer(tokens), roberta(tokens), rtol=0, atol=2e-6)
    ours, theirs = (
        m.get_parameter(f"network.{name}.embeddings.position_embeddings.weight")
        for m, name in ((longformer, "longformer"), (roberta, "roberta"))
    )
    assert torch.equal(ours[:17], theirs) and torch.equal(ours[17:], theirs[1:17])
    first = "network.longformer.encoder.layer.0.attention.self"
    assert torch.equal(
        longformer.get_parameter(f"{first}.key_global.weight"), longformer.get_parameter(f"{first}.key.weight")
    )


def test_a_head_for_pairs_that_nobody_trains_is_refused():
    """Its pooler would get no gradient."""
    with pytest.raises(InputError, match=r"head for pairs of segments, .*: use BertForMaskedLM"):
        built(tiny("BertForPreTraining"), pairs=False)


def test_a_class_that_says_the_size_of_its_vocabulary_twice_starts_from_itself(tmp_path):
    config = tiny("MarianMTModel")
    model = built(config)
    write_folder(tmp_path, Counterpart(config), model)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["vocab_size"] == values["decoder_vocab_size"] == SIZE
    HuggingFaceFolder(str(tmp_path), built(config, seed=2), SIZE, None)


def test_big_bird_starts_from_bert(tmp_path):
    bert = built(tiny("BertForPreTraining", max_seq_len=8, settings={"hidden_act": "gelu_new"})).eval()
    write_folder(tmp_path, Counterpart(bert.config), bert)
    config = tiny("BigBirdForMaskedLM", settings={"attention_type": "original_full"})
    big_bird = built(config, seed=2).eval()
    HuggingFaceFolder(str(tmp_path), big_bird, SIZE, None).load_into(big_bird)
    tokens = torch.arange(7, 15)[None]
    torch.testing.assert_close(big_bird(tokens), bert(tokens)[:, :8], rtol=0, atol=2e-6)


def write_folder(folder, counterpart, model) -> None:
    """As an export writes it, without a tokenizer."""
    values = counterpart.huggingface_config(model, TEXT.special_ids)
    (folder / "config.json").write_text(json.dumps(values))
    tensors = model.state_dict()
    weights = {e.theirs: e.export(tensors[e.ours]).contiguous().clone() for e in counterpart.weight_map(model)}
    save_file(weights, folder / "model.safetensors")


def problems(*overrides: str) -> str:
    with pytest.raises(InputError) as error:
        load_config(["data.path=x", "model=hf_debug", *overrides], 2)
    return str(error.value)


def test_what_cannot_be_is_refused_by_name():
    masked = ("objective=masked_lm", "objective.pairing=none")
    assert "RobertaForMaskedLM are whole" in problems(*masked, "engine=megatron", "engine.tensor_parallel=2")
    assert "model.architecture is missing" in problems(*masked, "model=huggingface")
    assert "no objective is known" in problems(*masked, "model.architecture=RobertaForTokenClassification")
    assert "no model class of this name" in problems(*masked, "model.architecture=RubertaForMaskedLM")
    assert "is set by the prepared data" in problems(*masked, "model.settings.vocab_size=64")
    assert "has no attention_windows" in problems(*masked, "model.settings.attention_windows=64")
    assert "model.hidden_size say the same twice" in problems(*masked, "model.settings.hidden_size=64")
    assert "does not fit model=hf_debug: objective=masked_lm" in problems("objective=causal_lm")
    unproven = (*masked, "model.architecture=ErnieForMaskedLM", "engine=deepspeed", "engine.zero_stage=2")
    assert "engine.zero_stage=2 is not proven for model.architecture=ErnieForMaskedLM" in problems(*unproven)
    led = ("objective=span_corruption", "model.architecture=LEDForConditionalGeneration")
    assert "no gradient reaches led." in problems(*led)
    assert "not a multiple of the number of attention heads (7)" in problems(*masked, "model.num_heads=7")
    assert "KeyError: 'os.system'" in problems(*masked, "model.settings={hidden_act:os.system}")
    assert "expected str, got int" in problems(*masked, "model.settings={hidden_act:5}")
    assert "has no values in roberta.embeddings.token_type" in problems(*masked, "model.settings={type_vocab_size:0}")
    assert "pad_token_id is set by the prepared data" in problems(*masked, "model.settings={pad_token_id:7}")
    assert "dtype is set by train.precision" in problems(*masked, "model.settings={dtype:float16}")
    assert "with these model.settings" in problems(*masked, "model.architecture=MobileBertForMaskedLM")
    assert "ZeroDivisionError" in problems(*masked, "model=bigbird_base", "+model.settings.block_size=0")
    assert "does not run" in problems(*masked, "model=reformer_base", "model.max_seq_len=128")
    assert "model.max_seq_len=4096 only" in problems(*masked, "model=reformer_base", "data.seq_len=2048")
    causal = ("objective=causal_lm", "model.architecture=BertLMHeadModel")
    assert "sees the tokens that it is to predict" in problems(*causal)
    load_config(["data.path=x", "model=hf_debug", *causal, "+model.settings.is_decoder=true"], 2)
    assert "is_decoder is not proven" in problems(*masked, "+model.settings.is_decoder=true")
    assert "num_hidden_layers=1000000000: more than 10000" in problems(
        *masked, "model.num_layers=null", "+model.settings.num_hidden_layers=1000000000"
    )
    assert "initializer_range=-1" in problems(*masked, "+model.settings.initializer_range=-1")
    assert "e+18 parameters" in problems(*masked, "model.intermediate_size=1000000000000000")
    behind = (*masked, "model.architecture=ErnieForMaskedLM", "+model.settings.is_decoder=true")
    assert "does not see later tokens" in problems(*behind)
    resnet = ("objective=image_classification", "model.architecture=ResNetForImageClassification")
    assert "normalizes over the whole global batch" in problems(*resnet)
    others = ("objective=image_classification", "model.architecture=RegNetForImageClassification")
    assert "supported for ResNetForImageClassification only" in problems(*others, *(f"model.{k}=null" for k in SHAPES))


def test_a_padding_far_behind_would_waste_positions():
    far = Vocabulary(SIZE, {**TEXT.special_ids, "pad": 512})
    with pytest.raises(InputError, match="which is 512 in the prepared data"):
        build_model(tiny("LongformerForMaskedLM"), far, PlainLayers())


def from_file(folder: Path, *overrides: str) -> Any:
    masked = ("data.path=x", "objective=masked_lm", "objective.pairing=none", "model=huggingface")
    return load_config([*masked, f"model.config_json={folder}", *overrides]).model


def test_a_config_json_gives_architecture_and_settings(tmp_path):
    """What decides the network is the file's; dropout, special ids and the vocabulary are ours."""
    shape = {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96}
    theirs = transformers.RobertaConfig(
        **shape, max_position_embeddings=66, layer_norm_eps=1e-3, hidden_dropout_prob=0.3, vocab_size=1024
    )
    theirs.architectures = ["RobertaForMaskedLM"]
    theirs.save_pretrained(tmp_path)
    config = from_file(tmp_path)
    assert (config.architecture, config.max_seq_len, config.dropout, config.config_json) == (
        *("RobertaForMaskedLM", 64, 0.0, None),
    )
    made = filled_config(config, Vocabulary(1024, {"pad": 1, "bos": 0, "eos": 2}))
    differing = {key for key, value in theirs.to_dict().items() if made.to_dict()[key] != value}
    dropouts = {"hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"}
    assert differing == {*dropouts, "use_cache", "architectures"}
    assert from_file(tmp_path / "config.json", "model.num_layers=2").num_layers == 2
    stored = json.loads((tmp_path / "config.json").read_text())
    for change, told in (
        ({"auto_map": {"AutoModel": "evil.Model"}}, "names code of its own"),
        ({"model_type": "bert"}, "has model_type=bert, that of RobertaForMaskedLM is roberta"),
        ({"architectures": []}, "names no architectures"),
        ({"architectures": ["os.system"]}, "no model class of this name"),
        ({"hidden_size": "abc"}, "hidden_size"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**stored, **change}))
        with pytest.raises(InputError, match=told):
            from_file(tmp_path)
