"""Pretraining starts from folders that others published: their tokenizer, their names, their heads."""

import json
import os

import numpy as np
import pytest
import sentencepiece
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import InputError
from data_pipeline.prepare import PrepareConfig, prepare
from data_pipeline.tokenizers.export import convert
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.hub import parity
from pretraining.hub.export import ExportConfig, export
from pretraining.hub.init_from import HuggingFaceFolder
from pretraining.models.bert.config import BertConfig
from pretraining.models.gpt.config import GPTConfig
from pretraining.models.heads import attach_heads
from pretraining.models.mae.config import MAEConfig
from pretraining.models.registry import build_model, huggingface_family
from pretraining.models.t5.config import T5Config
from pretraining.models.vit.config import ViTConfig
from pretraining.models.vocabulary import Vocabulary
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.text.causal_lm import CausalLM, CausalLMConfig
from pretraining.parallel.layers import PlainLayers
from pretraining.run.checkpoint_format import newest_checkpoint
from pretraining.run.run_dir import load_plain_model, read_run_config
from pretraining.train import pretrain
from tests.building import UsualHeads, build, open_folder

TEXT = "The quick brown fox jumps over the lazy dog. And then it sleeps, until 18:30; 42 times.\n"
SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "max_seq_len": 64}
BERT = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
ONE_STEP = [
    "train.steps=1",
    "optimizer.lr=1e-12",
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
    "scheduler.warmup_steps=0",
    "train.eval_every=0",
    "train.checkpoint_every=0",
    "tracking.wandb=disabled",
    "data.num_workers=0",
]
SPARE = 7  # rows of the model that no token has


def byte_level_bpe():
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made, trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )


def word_pieces():
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return made, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)


def unigram():
    """With the sentinels last and counted down, as in T5's."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return made, trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )


PUBLISHED = {
    "gpt": (
        byte_level_bpe,
        GPTConfig(name="gpt", **SHAPE),
        "GPT2LMHeadModel",
        lambda size: transformers.GPT2Config(**GPT2, vocab_size=size),
    ),
    "bert": (
        word_pieces,
        BertConfig(name="bert", **SHAPE),
        "BertForPreTraining",
        lambda size: transformers.BertConfig(**BERT, vocab_size=size),
    ),
    "t5": (
        unigram,
        T5Config(name="t5", **SHAPE),
        "T5ForConditionalGeneration",
        lambda size: transformers.T5Config(num_layers=2, d_model=32, num_heads=4, d_kv=8, d_ff=128, vocab_size=size),
    ),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """family -> (a folder as others publish it, prepared data of its tokenizer.json), made once."""
    made = {}

    def make(family):
        if family not in made:
            root = tmp_path_factory.mktemp(family)
            save_published(family, root / "hub")
            made[family] = root / "hub", prepare_with(root / "hub" / "tokenizer.json", root)
        return made[family]

    return make


def save_published(family, folder):
    kind, _, architecture, config = PUBLISHED[family]
    fast, trainer = kind()
    fast.train_from_iterator([TEXT] * 20, trainer)
    if family == "t5":
        fast.add_special_tokens([f"<extra_id_{n}>" for n in reversed(range(100))])
    model = getattr(transformers, architecture)(config(fast.get_vocab_size() + SPARE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # biases are 0, norms 1 at first
    model.save_pretrained(folder)
    fast.enable_truncation(16)
    fast.save(str(folder / "tokenizer.json"))


def prepare_with(tokenizer, root):
    for n in range(8):
        (root / f"{n}.txt").write_text(f"Chapter {n}. " + TEXT * 20)
    overrides = [
        f"corpus.inputs=[{root}/*.txt]",
        f"output={root}/prepared",
        f"tokenizer.path={tokenizer}",
        "num_workers=0",
        "block_tokens=2000",
    ]
    prepare(compose_config("prepare", overrides, PrepareConfig))
    return root / "prepared"


def started(folder, config, tokenizer):
    """-> (the folder, as checked; our model with its weights; the same before)."""
    checked = open_folder(folder, config, tokenizer.total_size, tokenizer)
    model, before = (build(config, tokenizer.total_size) for _ in range(2))
    for each in (model, before):
        each.initialize(1)
    checked.load_into(model)
    return checked, model, before


def difference(family, model, folder, rows):
    """Of all outputs on ids that both know, by `rows`: our id -> theirs."""
    architecture, counterpart = PUBLISHED[family][2], huggingface_family(family)
    ours, theirs = torch.tensor(list(rows)), torch.tensor(list(rows.values()))
    probes = parity.probes(counterpart, model, len(rows))
    written = [
        [{k: ids[t % len(ids)] if k.endswith("input_ids") else t for k, t in probe.items()} for probe in probes]
        for ids in (ours, theirs)
    ]
    mine = parity.our_outputs(counterpart, model, written[0], {})
    other = parity.their_outputs(folder, architecture, written[1], list(mine[0]))
    shared = [
        [{name: t if t.shape[-1] == 2 else t[..., ids] for name, t in each.items()} for each in outputs]
        for ids, outputs in ((ours, mine), (theirs, other))
    ]
    return parity.largest_difference(*shared)


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_published_model_comes_in_with_its_tokenizer(family, published):
    folder, data = published(family)
    tokenizer = Tokenizer.load(data / "tokenizer")
    checked, model, before = started(folder, PUBLISHED[family][1], tokenizer)
    fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert all(checked.rows[i] == i for i in range(fast.get_vocab_size()))
    far = difference(family, model, folder, checked.rows)
    print(f"{family}: {far:.2e}")
    assert far <= 1e-5
    new = [i for i in range(len(before.token_embedding.weight)) if i not in checked.rows]
    assert torch.equal(model.token_embedding.weight[new], before.token_embedding.weight[new])
    assert not model.token_embedding.weight[tokenizer.total_size :].any()
    named = {
        "bert": ((tokenizer.mask, "[MASK]"), (tokenizer.cls, "[CLS]"), (tokenizer.sep, "[SEP]")),
        "t5": ((tokenizer.sentinels[0], "<extra_id_0>"), (tokenizer.sentinels[99], "<extra_id_99>")),
        "gpt": (),
    }
    assert all(checked.rows[i] == fast.token_to_id(name) for i, name in named[family])
    assert checked.notes() == [
        f"model.init_from={folder}: {len(checked.rows)} rows of the vocabulary are taken from "
        f"it, {tokenizer.total_size - len(checked.rows)} are new"
    ]


def test_a_sentencepiece_model_is_the_tokenizer_json_that_was_made_of_it(tmp_path):
    """Without byte pieces, decoders leave other spaces around what is unknown: the ids are the same."""
    options = {"model_type": "unigram", "vocab_size": 60, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT + "a < b / c > d"] * 20),
        minloglevel=2,
        model_prefix=str(tmp_path / "spiece"),
        hard_vocab_limit=False,
        **options,
    )
    tokenizer = Tokenizer.from_file(str(tmp_path / "spiece.model"))
    config = GPTConfig(name="gpt", **SHAPE)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, vocab_size=200)).save_pretrained(tmp_path)
    convert(tokenizer).save(str(tmp_path / "tokenizer.json"))
    checked, _, _ = started(tmp_path, config, tokenizer)
    assert checked.rows == {i: i for i in range(tokenizer.total_size)}


def test_the_command_starts_from_a_published_folder(published, tmp_path, capsys):
    folder, data = published("bert")
    shape = [f"model.{key}={value}" for key, value in SHAPE.items()]
    assert (
        pretrain(
            [
                "model=bert_debug",
                "objective=masked_lm",
                *shape,
                f"model.init_from={folder}",
                "train.steps=1",
                "optimizer.lr=1e-12",
                "train.global_batch_size=4",
                "train.micro_batch_size=4",
                "scheduler.warmup_steps=0",
                "train.eval_every=0",
                "train.checkpoint_every=0",
                "tracking.wandb=disabled",
                "data.num_workers=0",
                f"data.path={data}",
                f"run_dir={tmp_path}/r",
            ]
        )
        == 0
    )
    assert capsys.readouterr().err.count("rows of the vocabulary are taken from it") == 1
    tokenizer = Tokenizer.load(data / "tokenizer")
    model = load_plain_model(
        read_run_config(tmp_path / "r"),
        Vocabulary(tokenizer.total_size),
        UsualHeads(),
        newest_checkpoint(tmp_path / "r" / "checkpoints"),
    )
    checked, _, _ = started(folder, PUBLISHED["bert"][1], tokenizer)
    assert difference("bert", model, folder, checked.rows) <= 1e-5


def test_ranks_take_their_part_of_the_rows(published):
    folder, data = published("gpt")
    checked, whole, before = started(folder, PUBLISHED["gpt"][1], Tokenizer.load(data / "tokenizer"))
    half = len(before.token_embedding.weight) // 2
    for rank in (0, 1):
        _, model, _ = started(folder, PUBLISHED["gpt"][1], Tokenizer.load(data / "tokenizer"))
        part = torch.nn.Parameter(before.token_embedding.weight[rank * half :][:half].detach().clone())
        part.tensor_model_parallel, part.partition_dim = True, 0
        model.token_embedding.weight = model.head.weight = part
        model.layers.size, model.layers.rank = 2, rank
        checked.load_into(model)
        assert torch.equal(part, whole.token_embedding.weight[rank * half :][:half])


def test_a_vocabulary_of_another_size_needs_the_tokenizer(published, tmp_path):
    folder, data = published("gpt")
    tokenizer = Tokenizer.load(data / "tokenizer")
    copied(folder, tmp_path / "bare").joinpath("tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"its vocabulary has .* \(with its tokenizer\.json in the folder"):
        started(tmp_path / "bare", PUBLISHED["gpt"][1], tokenizer)
    copied(folder, tmp_path / "other").joinpath("tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"not a Hugging Face tokenizer\.json"):
        started(tmp_path / "other", PUBLISHED["gpt"][1], tokenizer)
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["dropout"] = 0.5
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"model\.dropout=0\.5 would give a text other tokens"):
        started(tmp_path / "other", PUBLISHED["gpt"][1], tokenizer)


def copied(folder, target):
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


VIT = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 16,
    "patch_size": 4,
}
IMAGES = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "image_size": 16, "patch_size": 4, "norm_eps": 1e-12}


def rewritten(folder, change):
    """Every tensor through change(name, tensor) -> (name, tensor), or None: left out."""
    changed = (change(name, tensor) for name, tensor in load_file(folder / "model.safetensors").items())
    save_file(dict(found for found in changed if found), folder / "model.safetensors", metadata={"format": "pt"})


def test_a_vit_of_two_classes_need_not_name_them(tmp_path):
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT))
    torch.nn.init.normal_(theirs.classifier.weight)
    theirs.save_pretrained(tmp_path)
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(InputError, match="num_classes is 10, the folder's is 2"):
        open_folder(tmp_path, ViTConfig(name="vit", **IMAGES), 10)
    config = ViTConfig(name="vit", **IMAGES)
    model, family = build(config, 2), huggingface_family("vit")
    checked = open_folder(tmp_path, config, 2)
    checked.load_into(model)
    examples = parity.probes(family, model, 2)
    ours = parity.our_outputs(family, model, examples, {})
    other = parity.their_outputs(tmp_path, "ViTForImageClassification", examples, ["logits"])
    assert parity.largest_difference(ours, other) <= 1e-5 and checked.notes() == []


def test_all_faults_are_told_before_anything_starts(published, tmp_path):
    folder, data = published("gpt")
    tokenizer = Tokenizer.load(data / "tokenizer")
    config = GPTConfig(name="gpt", **SHAPE)
    broken = copied(folder, tmp_path / "shard")
    table = {"transformer.wte.weight": "one.safetensors", "transformer.wpe.weight": "two.safetensors"}
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    (broken / "model.safetensors").rename(broken / "one.safetensors")
    with pytest.raises(InputError, match=r"two\.safetensors, which .* names, is missing; model\.num_layers is 3"):
        started(broken, GPTConfig(name="gpt", **{**SHAPE, "num_layers": 3}), tokenizer)
    (broken / "two.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(InputError, match=r"two\.safetensors is not a readable safetensors file"):
        started(broken, config, tokenizer)
    (broken / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="no weight_map"):
        started(broken, config, tokenizer)
    cut = copied(folder, tmp_path / "cut")
    rewritten(cut, lambda name, t: (name, t[:9].clone() if "wpe" in name or "ln_f.bias" in name else t))
    with pytest.raises(InputError, match=r"wpe.weight is \[9, 32\], the model's is \[64, 32\].*ln_f.bias is \[9\]"):
        started(cut, config, tokenizer)


LLAMA = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
}
MODERN = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "tie_embeddings": False}
BASES = {
    "GPT2LMHeadModel": (transformers.GPT2Config(**GPT2, vocab_size=200), GPTConfig(name="gpt", **SHAPE), ()),
    "LlamaForCausalLM": (
        transformers.LlamaConfig(**LLAMA, vocab_size=200),
        GPTConfig(name="gpt", **SHAPE, **MODERN),
        ("lm_head.weight",),
    ),
    "BertForPreTraining": (
        transformers.BertConfig(**BERT, vocab_size=200),
        BertConfig(name="bert", **SHAPE),
        ("cls.predictions.bias", "cls.predictions.transform.dense.weight", "cls.seq_relationship.bias"),
    ),
    "ViTForImageClassification": (
        transformers.ViTConfig(**VIT, num_labels=200),
        ViTConfig(name="vit", **IMAGES),
        ("classifier.weight", "classifier.bias"),
    ),
}


def loaded(folder, config):
    checked = open_folder(folder, config, 200)
    model = build(config, 200)
    model.initialize(1)
    checked.load_into(model)
    return dict(model.named_parameters()) | dict(model.named_buffers()), checked


def new_ones(first, second, config, new):
    """Two folders' models are one and the same, `new` tensors of the second apart, which are a new model's."""
    fresh = build(config, 200)
    fresh.initialize(1)
    for name, tensor in fresh.named_parameters():
        assert torch.equal(second[name], tensor if name.startswith(new) else first[name]), name


@pytest.mark.parametrize("architecture", BASES)
def test_the_folder_of_a_base_model_has_no_heads(architecture, tmp_path):
    theirs_config, config, heads = BASES[architecture]
    theirs = getattr(transformers, architecture)(theirs_config)
    theirs.save_pretrained(tmp_path / "whole")
    theirs.base_model.save_pretrained(tmp_path / "base")
    (whole, all_there), (base, checked) = (loaded(tmp_path / kind, config) for kind in ("whole", "base"))
    assert not any("warning" in note for note in all_there.notes())
    warnings = [note for note in checked.notes() if note.startswith("warning: ")]
    assert len(warnings) == bool(heads) and all(head in warnings[0] for head in heads)
    new_ones(whole, base, config, ("head.", "pair_head.classifier") if heads else ())


def test_the_base_of_an_untied_t5_has_no_head(tmp_path):
    config = T5Config(name="t5", **SHAPE, tie_embeddings=False)
    transformers.T5Model(
        transformers.T5Config(
            num_layers=2, d_model=32, num_heads=4, d_kv=8, d_ff=128, vocab_size=200, tie_word_embeddings=False
        )
    ).save_pretrained(tmp_path)
    _, checked = loaded(tmp_path, config)
    assert checked.new_heads == ["lm_head.weight"]


def test_a_bert_for_masked_tokens_with_old_names_lacks_the_pair_head(tmp_path):
    theirs_config, config, _ = BASES["BertForPreTraining"]
    theirs = transformers.BertForPreTraining(theirs_config)
    theirs.save_pretrained(tmp_path / "whole")
    masked = transformers.BertForMaskedLM(theirs_config)
    masked.load_state_dict(theirs.state_dict(), strict=False)
    masked.save_pretrained(tmp_path / "masked")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def renamed(name, tensor):
        for new, before in old.items():
            name = name.replace(new, before)
        return name, tensor

    rewritten(tmp_path / "masked", renamed)
    (whole, _), (part, checked) = (loaded(tmp_path / kind, config) for kind in ("whole", "masked"))
    assert checked.new_heads == [
        f"{module}.{part}" for module in ("bert.pooler.dense", "cls.seq_relationship") for part in ("weight", "bias")
    ]
    new_ones(whole, part, config, ("pair_head.",))
    rewritten(tmp_path / "masked", lambda name, t: None if "layer.1.output.dense" in name else (name, t))
    with pytest.raises(InputError, match=r"lacks the weights bert\.encoder\.layer\.1\.output\.dense\.bias"):
        loaded(tmp_path / "masked", config)


@pytest.mark.parametrize("family", ["vit", "mae"])
def test_fixed_positions_stay(family, tmp_path):
    """A folder that has others would give one model now and another one after a resume."""
    sizes = {"decoder_num_hidden_layers": 1, "decoder_hidden_size": 16, "decoder_num_attention_heads": 2}
    ours = {"decoder_num_layers": 1, "decoder_hidden_size": 16, "decoder_num_heads": 2}
    if family == "vit":
        config = ViTConfig(name="vit", **IMAGES, positions="sinusoidal")
        theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, num_labels=200))
    else:
        config = MAEConfig(name="mae", **IMAGES, positions="sinusoidal", **ours)
        theirs = transformers.ViTMAEForPreTraining(
            transformers.ViTMAEConfig(**VIT, **sizes, decoder_intermediate_size=64)
        )
    whole = build(config, 200)
    fixed = whole.encoder.position_embedding
    with torch.no_grad():
        if family == "mae":  # transformers 5 begins with zeros
            theirs.decoder.decoder_pos_embed.copy_(whole.decoder.position_embedding[None])
        theirs.vit.embeddings.position_embeddings.normal_()
        theirs.save_pretrained(tmp_path / "learned")
        theirs.vit.embeddings.position_embeddings.copy_(fixed[None] + 1e-6)
        theirs.save_pretrained(tmp_path / "fixed")
        theirs.bfloat16().save_pretrained(tmp_path / "rounded")
    with pytest.raises(InputError, match=r"position_embeddings differ by up to [\d.]+ from the fixed ones"):
        loaded(tmp_path / "learned", config)
    for kind in ("fixed", "rounded"):
        assert torch.equal(loaded(tmp_path / kind, config)[0]["encoder.position_embedding"], fixed)


def test_a_continued_bert_keeps_its_rows_and_names(published, tmp_path):
    """Nothing is added to its vocabulary: what BERT's objective uses, it has."""
    folder, data = published("bert")
    tokenizer, fast = Tokenizer.load(data / "tokenizer"), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    assert {role: tokenizer.special_ids[role] for role in names} == {r: fast.token_to_id(n) for r, n in names.items()}
    shape = [f"model.{key}={value}" for key, value in SHAPE.items()]
    start = ["model=bert_debug", "objective=masked_lm", *shape, f"model.init_from={folder}", f"data.path={data}"]
    assert pretrain([*start, *ONE_STEP, f"run_dir={tmp_path}/r"]) == 0
    export(ExportConfig(f"{tmp_path}/r", str(tmp_path / "out")))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(theirs) == fast.get_vocab_size() == json.loads((tmp_path / "out/config.json").read_text())["vocab_size"]
    assert {role: getattr(theirs, f"{role}_token") for role in names} == names
    assert theirs("The fox", "the dog").input_ids[0] == fast.token_to_id("[CLS]")
    assert theirs.get_vocab() == fast.get_vocab()


def test_the_first_loss_of_a_published_gpt2_is_transformers_own(published):
    """Ids that were added to its vocabulary take no part in the softmax."""
    folder, data = published("gpt")
    tokenizer = Tokenizer.load(data / "tokenizer")
    objective = CausalLM(CausalLMConfig("causal_lm"), SampleSpec(seq_len=64, tokenizer=tokenizer))
    config = PUBLISHED["gpt"][1]
    model = attach_heads(build_model(config, Vocabulary(tokenizer.total_size), PlainLayers()), objective, PlainLayers())
    model.initialize(1)
    HuggingFaceFolder(str(folder), model, tokenizer.total_size, tokenizer).load_into(model)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    size = len(tokenizer.pieces)
    with torch.no_grad():  # the rows that no token has are no part of the vocabulary
        theirs.resize_token_embeddings(size)
    document = np.array([tokenizer.bos, *tokenizer.encode(TEXT)[:40], tokenizer.eos])
    batch = {k: torch.from_numpy(v) for k, v in objective.collate([objective.corrupt([document], None)]).items()}
    with torch.no_grad():
        ours = objective.loss(model, batch)["causal_lm"] / (len(document) - 1)
        tokens = torch.from_numpy(document)[None]
        assert abs(float(ours) - float(theirs(input_ids=tokens, labels=tokens).loss)) <= 1e-5
        assert tokenizer.total_size > size and not torch.isfinite(model.head.logits(torch.ones(1, 32)))[0, size:].any()


def test_a_strangers_folder_is_refused_by_name(published, tmp_path):
    folder, data = published("gpt")
    tokenizer = Tokenizer.load(data / "tokenizer")
    config = GPTConfig(name="gpt", **SHAPE)
    index = "model.safetensors.index.json"

    def refused(name, match, change):
        change(broken := copied(folder, tmp_path / name))
        with pytest.raises(InputError, match=match):
            started(broken, config, tokenizer)

    def named(file):
        return lambda f: (f / index).write_text(json.dumps({"weight_map": {"transformer.wte.weight": file}}))

    def pipe(name):
        return lambda f: ((f / name).unlink(missing_ok=True), os.mkfifo(f / name))

    refused("pipe", r"model\.safetensors is not a readable .*a named pipe", pipe("model.safetensors"))
    refused("named", r"x\.bin is not .*a named pipe", lambda f: (named("x.bin")(f), pipe("x.bin")(f)))
    refused("config", r"config\.json cannot be read: it is a named pipe", pipe("config.json"))
    refused("index", r"index\.json cannot be read: it is a named pipe", pipe(index))
    for number, name in enumerate(("../model.safetensors", "/etc/passwd", "..", "", "a\0b")):
        refused(f"outside{number}", r"index\.json: .* is not the name of a file in", named(name))
    for number, (key, value) in enumerate([("n_embd", "x"), ("n_layer", [2]), ("n_head", {}), ("vocab_size", "9")]):

        def change(f, key=key, value=value):
            (f / "config.json").write_text(json.dumps(json.loads((f / "config.json").read_text()) | {key: value}))

        refused(f"type{number}", r"config\.json.*vocab_size|the folder's is|config\.json is broken", change)

    def with_norm(change):
        return lambda f: rewritten(f, lambda name, t: (name, change(t) if "ln_f" in name else t))

    refused("nan", r"ln_f.* not finite", with_norm(lambda t: torch.full_like(t, float("nan"))))
    refused("infinite", r"ln_f.* not finite", with_norm(lambda t: torch.full_like(t, float("inf"))))
    checked = open_folder(tmp_path / "nan", config, tokenizer.total_size, tokenizer)
    model = build(config, tokenizer.total_size)
    model.initialize(1)
    checked.load_into(model, load_not_finite=True)  # where it is asked for
    assert any(p.isnan().all() for p in model.parameters())
    assert "ln_f.weight, " in checked.notes()[-1] and "load_not_finite=true asks" in checked.notes()[-1]
    refused("integers", r"lacks the weights .*ln_f", with_norm(lambda t: t.int()))
