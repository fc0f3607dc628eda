"""A RoBERTa as transformers' users publish it comes in: positions from its padding's id + 1, and its one segment."""

import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_pipeline.common.errors import InputError
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.hub import parity
from pretraining.models.bert.config import RobertaConfig
from pretraining.models.registry import huggingface_family
from tests.building import build, open_folder
from tests.hub.test_init_from import SHAPE, TEXT, prepare_with

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
NAMES = {"bos": "<s>", "cls": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(transformers' model, its folder, data prepared with its tokenizer)."""
    root = tmp_path_factory.mktemp("roberta")
    fast = tokenizers.Tokenizer(models.BPE())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, show_progress=False, initial_alphabet=alphabet
    )
    fast.train_from_iterator([TEXT] * 20, trainer)
    config = transformers.RobertaConfig(
        vocab_size=fast.get_vocab_size(),
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=66,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    model = transformers.RobertaForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(root / "hub")
    fast.save(str(root / "hub" / "tokenizer.json"))
    names = {f"{role}_token": name for role, name in NAMES.items()}
    (root / "hub" / "tokenizer_config.json").write_text(json.dumps(names))
    return model, root / "hub", prepare_with(root / "hub" / "tokenizer.json", root)


def started(folder, data, segments):
    tokenizer = Tokenizer.load(data / "tokenizer")
    assert (tokenizer.cls, tokenizer.pad, tokenizer.sep) == (0, 1, 2)
    config = RobertaConfig(name="roberta", segments=segments, **SHAPE)
    model = build(config, tokenizer.total_size, pairs=False)
    model.initialize(1)
    open_folder(folder, config, tokenizer.total_size, tokenizer, pairs=False).load_into(model)
    return model


def furthest(model, folder):
    """Of all logits on probes of the folder's ids."""
    family, size = huggingface_family("roberta"), json.loads((folder / "config.json").read_text())["vocab_size"]
    probes = [{"input_ids": t["input_ids"] % size} for t in family.probe_inputs(model, np.random.default_rng(1))]
    for probe in probes:
        probe["input_ids"][probe["input_ids"] == 1] = 7
    ours = parity.our_outputs(family, model, probes, {})
    theirs = parity.their_outputs(folder, "RobertaForMaskedLM", probes, ["logits"])
    return parity.largest_difference([{"logits": each["logits"][..., :size]} for each in ours], theirs)


def test_a_published_roberta_comes_in_with_its_segment(published):
    _, folder, data = published
    assert furthest(started(folder, data, segments=1), folder) <= 1e-5


def test_without_segments_its_segment_must_be_zeros(published, tmp_path):
    """As in the authors' own, which were converted so."""
    theirs, folder, data = published
    with pytest.raises(InputError, match=r"token_type_embeddings.*from the fixed ones of model\.segments=0"):
        started(folder, data, segments=0)
    with torch.no_grad():
        theirs.roberta.embeddings.token_type_embeddings.weight.zero_()
    theirs.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    assert furthest(started(tmp_path, data, segments=0), tmp_path) <= 1e-5
