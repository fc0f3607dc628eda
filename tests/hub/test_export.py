"""A run leaves as a Hugging Face folder with its proof, and comes back from one."""

import dataclasses
import io
import json
import logging
import re
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import InputError
from data_pipeline.prepare import PrepareConfig, prepare
from data_pipeline.shards.images import EncodedImage
from data_pipeline.tokenizers.export import EDGE_CASE_TEXTS, convert, disagreements
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.hub import export as export_module
from pretraining.hub import parity
from pretraining.hub.export import ExportConfig, export
from pretraining.models.gpt import huggingface as gpt_huggingface
from pretraining.models.gpt.config import GPTConfig
from pretraining.models.registry import huggingface_family
from pretraining.models.t5.config import T5Config
from pretraining.models.vocabulary import Vocabulary
from pretraining.objectives.image.classification import ImageClassificationConfig
from pretraining.run.checkpoint_format import newest_checkpoint, open_checkpoint
from pretraining.run.run_dir import load_plain_model, read_run_config
from pretraining.train import pretrain
from tests.building import UsualHeads, build, open_folder

TEXT = "The quick brown fox jumps over the lazy dog.\n\tAnd then:  it sleeps — until 18:30.\n\n"
SMALL = ["model.num_layers=2", "model.hidden_size=32", "model.num_heads=4", "model.max_seq_len=64"]
TRAIN = [
    "train.steps=3",
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
    "scheduler.warmup_steps=1",
    "train.eval_every=0",
    "train.checkpoint_every=0",
    "tracking.wandb=disabled",
    "data.num_workers=0",
]
LLAMA = [
    "model.positions=rotary",
    "model.norm=rmsnorm",
    "model.activation=swiglu",
    "model.bias=false",
    "model.tie_embeddings=false",
    "model.num_kv_heads=2",
]
T5 = ["model=t5_debug", "objective=span_corruption", "model.head_dim=16"]
RUNS = {
    "gpt2": ["model=gpt_debug", *SMALL],
    "gpt1": ["model=gpt_debug", *SMALL, "model.norm_position=post"],
    "llama": ["model=gpt_debug", *SMALL, *LLAMA],
    "t5 v1.1": [*T5, *SMALL],
    "t5 v1.0": [*T5, *SMALL, "model.activation=relu", "model.tie_embeddings=true"],
    "transformer": ["model=transformer_debug", "objective=denoising", *SMALL],
    "bert": ["model=bert_debug", "objective=masked_lm", *SMALL],
    "bert without pairs": ["model=bert_debug", "objective=masked_lm", "objective.pairing=none", *SMALL],
    "roberta": ["model=roberta_debug", "objective=roberta", *SMALL],
    "albert": ["model=albert_debug", "objective=albert", *SMALL],
}
WITHOUT_PAIRS = ("bert without pairs", "roberta")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for n in range(12):
        (folder / f"{n}.txt").write_text(f"Chapter {n}. " + TEXT * 20)
    overrides = [
        f"corpus.inputs=[{folder}/*.txt]",
        f"output={folder}/prepared",
        "tokenizer.vocab_size=330",
        "num_workers=0",
        "block_tokens=2000",
    ]
    prepare(compose_config("prepare", overrides, PrepareConfig))
    return folder / "prepared"


@pytest.fixture(scope="module")
def train(data, tmp_path_factory):
    """A short run of each kind, once -> its checkpoint."""
    done = {}

    def run(kind):
        if kind not in done:
            run_dir = tmp_path_factory.mktemp("run") / "r"
            assert pretrain([*RUNS[kind], *TRAIN, f"data.path={data}", f"run_dir={run_dir}"]) == 0
            done[kind] = run_dir / "checkpoints" / "step_00000003"
        return done[kind]

    return run


def to_folder(checkpoint, output):
    return export(ExportConfig(str(checkpoint), str(output), None))


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_leaves_with_its_proof_and_comes_back_bit_for_bit(kind, train, data, tmp_path):
    report = to_folder(train(kind), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "parity.json").read_text()) == report
    assert report["max_abs_difference"] <= 1e-4 and report["step"] == 3
    assert [f.name for f in tmp_path.iterdir()] == ["out"]

    probe = load_file(tmp_path / "out" / report["probe_inputs"])
    assert [f.name for f in (tmp_path / "out").rglob("*.safetensors")] == ["model.safetensors"]
    lengths = {tensor.shape[1] for name, tensor in probe.items() if name.endswith(".input_ids")}
    assert len(lengths) == 3  # rows of several lengths, none padded

    source = export_module.Source(ExportConfig(str(train(kind)), str(tmp_path / "again"), None))
    ours = load_plain_model(source.run, source.vocabulary, source.objective, source.checkpoint)
    pairs = kind not in WITHOUT_PAIRS
    back = build(source.run.model, source.vocabulary.outputs, pairs=pairs)
    back.initialize(1)
    for table in (p for name, p in back.named_parameters() if name in ("token_embedding.weight", "head.weight")):
        unused = np.setdiff1d(np.arange(source.vocabulary.outputs), source.used)
        table.data[unused] = 0.0  # ids that do not leave have rows of 0
    open_folder(tmp_path / "out", source.run.model, source.vocabulary.outputs, source.tokenizer, pairs).load_into(back)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), back.parameters(), strict=True))

    run_dir = tmp_path / "next"
    start = [f"model.init_from={tmp_path / 'out'}", f"run_dir={run_dir}", f"data.path={data}"]
    assert pretrain([*RUNS[kind], *TRAIN, *start, "train.steps=1", "optimizer.lr=1e-30"]) == 0
    checkpoint = run_dir / "checkpoints" / "step_00000001"
    moved = load_plain_model(source.run, source.vocabulary, source.objective, open_checkpoint(checkpoint))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), moved.parameters(), strict=True))


@pytest.mark.parametrize("model, objective", [("vit_debug", "image_classification"), ("mae_debug", "masked_image")])
def test_a_vision_model_leaves_with_its_proof_and_comes_back(model, objective, digits, tmp_path):
    run_dir, start = tmp_path / "r", [f"model={model}", f"objective={objective}", *TRAIN, f"data.path={digits}"]
    assert pretrain([*start, f"run_dir={run_dir}"]) == 0
    report = to_folder(run_dir / "checkpoints" / "step_00000003", tmp_path / "out")
    assert report["max_abs_difference"] <= 1e-4 and "tokenizer_texts" not in report
    again = [*start, f"model.init_from={tmp_path / 'out'}", "train.steps=1", "optimizer.lr=1e-30"]
    assert pretrain([*again, f"run_dir={tmp_path / 'again'}"]) == 0
    first, second = (
        load_plain_model(
            read_run_config(run), Vocabulary(classes=10), UsualHeads(), newest_checkpoint(run / "checkpoints")
        )
        for run in (run_dir, tmp_path / "again")
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_bert_without_pairs_is_a_masked_language_model(train, tmp_path):
    report = to_folder(train("bert without pairs"), tmp_path / "out")
    assert report["architecture"] == "BertForMaskedLM" and report["outputs"] == ["logits"]
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert not [name for name in names if "pooler" in name or "seq_relationship" in name]
    told = transformers.BertForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)[1]
    assert not told["missing_keys"] and not told["unexpected_keys"]


def export_vision(digits, run_dir, output, *overrides):
    assert pretrain([*overrides, *TRAIN, "train.steps=1", f"data.path={digits}", f"run_dir={run_dir}"]) == 0
    to_folder(run_dir / "checkpoints" / "step_00000001", output)
    return json.loads((output / "config.json").read_text())


def test_an_exported_classifier_names_its_classes_and_sees_what_an_evaluation_sees(digits, tmp_path):
    values = export_vision(
        digits,
        tmp_path / "r",
        tmp_path / "out",
        "model=vit_debug",
        "model.image_size=56",
        "model.patch_size=14",
        "objective=image_classification",
        "objective.mean=[0.5,0.4,0.3]",
        "objective.std=[0.3,0.2,0.1]",
    )
    assert values["id2label"] == {str(i): str(i) for i in range(10)} and values["label2id"]["7"] == 7
    x, y = np.meshgrid(np.linspace(0, 255, 200), np.linspace(0, 255, 128))
    photo = Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8))
    data = io.BytesIO()
    photo.save(data, "PNG")
    objective = read_run_config(tmp_path / "r").objective
    view = objective.evaluation_view(EncodedImage(data.getvalue(), 0, "x"), 56)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")(photo, return_tensors="pt").pixel_values
    ours = objective.normalize(torch.from_numpy(view[None]))
    assert theirs.shape == ours.shape and float((theirs - ours).abs().max()) <= 1e-6


@pytest.mark.parametrize("size", [16, 64, 224, 384])
@pytest.mark.parametrize("crop", [0.7, 0.875, 1.0])
def test_a_processor_gives_what_an_evaluation_sees_at_every_size(size, crop, tmp_path):
    objective, rng = ImageClassificationConfig("image_classification", eval_crop=crop), np.random.default_rng(size)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(objective.huggingface_processor(size)))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    for height, width in ((64, 64), (200, 128), (37, 501), (9, 9), (333, 222)):
        photo = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        data = io.BytesIO()
        photo.save(data, "PNG")
        view = objective.evaluation_view(EncodedImage(data.getvalue(), 0, "x"), size)
        theirs = processor(photo, return_tensors="pt").pixel_values
        assert float((theirs - objective.normalize(torch.from_numpy(view[None]))).abs().max()) <= 1e-6


def test_an_exported_autoencoder_tells_its_objective(digits, tmp_path):
    values = export_vision(
        digits,
        tmp_path / "r",
        tmp_path / "out",
        "model=mae_debug",
        "objective=masked_image",
        "objective.mask_ratio=0.5",
        "objective.norm_pix_loss=false",
    )
    assert (values["mask_ratio"], values["norm_pix_loss"]) == (0.5, False)
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path / "out").size["height"] == values["image_size"]


def test_help_explains_the_keys(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pretrain-export", "--help"])
    assert export_module.main() == 0
    told = capsys.readouterr().out
    assert "Example:" in told and "Groups:" not in told
    explained = {"checkpoint": "RUN/checkpoints/step_", "output": "must not exist", "data_path": "is now"}
    for key, meaning in explained.items():
        assert re.search(rf"^  {key}[=(].*: .*{meaning}", told, re.MULTILINE)


def test_transformers_does_not_warn_of_the_texts_that_prove_a_tokenizer(train, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    to_folder(train("gpt2"), tmp_path / "out")
    assert "Token indices" not in caplog.text
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 64


def test_a_difference_leaves_no_folder(train, tmp_path, monkeypatch, capsys):
    true_map = gpt_huggingface.weight_map

    def wrong_map(model):
        swapped = {"gate": "up", "up": "gate"}
        return [
            dataclasses.replace(e, ours=re.sub("(?<=mlp.)(gate|up)", lambda m: swapped[m[1]], e.ours))
            for e in true_map(model)
        ]

    monkeypatch.setattr(gpt_huggingface, "weight_map", wrong_map)
    monkeypatch.setattr(sys, "argv", ["pretrain-export", f"checkpoint={train('llama')}", f"output={tmp_path}/out"])
    assert export_module.main() == 2
    assert "differs from the checkpoint's model by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_not_a_number_is_a_difference():
    a = [{"logits": torch.tensor([1.0, float("nan")])}]
    assert parity.largest_difference(a, a) == float("inf")


def test_an_existing_output_is_refused(train, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(InputError, match="exists already"):
        to_folder(train("gpt2"), tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_a_checkpoint_outside_its_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="incomplete checkpoint"):
        to_folder(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "char"])
def test_the_exported_tokenizer_is_ours(model_type, tmp_path):
    if model_type == "char":
        tokenizer = Tokenizer.from_characters(dict.fromkeys(TEXT, 1), 400)
    else:
        tokenizer = Tokenizer.train([TEXT * 30 + "=====  ----\n      aaaa\n\n\n" * 20], model_type, 305)
    made = convert(tokenizer)
    made.encode_special_tokens = True
    pairs = [a + b for a in EDGE_CASE_TEXTS for b in EDGE_CASE_TEXTS]
    for texts in (EDGE_CASE_TEXTS, tuple(pairs), (TEXT * 5,)):
        assert not disagreements(Plainly(made), tokenizer, texts)


class Plainly:
    def __init__(self, made):
        self.made = made

    def encode(self, text):
        return self.made.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self.made.decode(ids, skip_special_tokens=True)


def test_transformers_begins_a_decoder_as_it_was_trained(train, data, tmp_path):
    ours = Tokenizer.load(data / "tokenizer")
    for kind, start in {"transformer": ours.eos, "t5 v1.1": ours.pad}.items():
        folder = tmp_path / kind.split()[0]
        to_folder(train(kind), folder)
        for file in ("config.json", "generation_config.json"):
            assert json.loads((folder / file).read_text())["decoder_start_token_id"] == start


def test_transformers_knows_the_special_tokens_that_the_objective_uses(train, data, tmp_path):
    ours = Tokenizer.load(data / "tokenizer")
    sizes = {"gpt2": ours.vocab_size, "bert": ours.vocab_size + 3, "t5 v1.1": ours.vocab_size + 100}
    for kind, size in sizes.items():
        folder = tmp_path / kind.split()[0]
        to_folder(train(kind), folder)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert len(theirs) == size == json.loads((folder / "config.json").read_text())["vocab_size"]
        for role in ("pad", "bos", "eos", "unk", *(("mask", "cls", "sep") if kind == "bert" else ())):
            assert getattr(theirs, f"{role}_token_id") == getattr(ours, role)
        for text in EDGE_CASE_TEXTS:
            encoded = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
            assert encoded == ours.encode(text) and theirs.decode(encoded) == text
    assert theirs.convert_tokens_to_ids("<extra_id_7>") == ours.vocab_size + 7


SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "max_seq_len": 64}
MODERN = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "num_kv_heads": 2}
FOREIGN = {
    "gpt2": (
        transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, n_positions=64, vocab_size=200),
        GPTConfig(name="gpt", **SHAPE),
    ),
    "llama": (
        transformers.LlamaConfig(
            num_hidden_layers=2,
            hidden_size=32,
            num_attention_heads=4,
            vocab_size=200,
            num_key_value_heads=2,
            intermediate_size=128,
            rms_norm_eps=1e-5,
        ),
        GPTConfig(name="gpt", **SHAPE, **MODERN, tie_embeddings=False),
    ),
    "t5": (
        transformers.T5Config(num_layers=2, d_model=32, num_heads=4, d_kv=8, d_ff=128, vocab_size=200),
        T5Config(name="t5", **SHAPE),
    ),
}


@pytest.mark.parametrize("family", FOREIGN)
def test_a_foreign_model_comes_in_with_its_numbers(family, tmp_path):
    theirs_config, config = FOREIGN[family]
    counterpart = huggingface_family(config.name)
    architecture = next(a for a in counterpart.architectures if a.lower().startswith(family))
    getattr(transformers, architecture)(theirs_config).save_pretrained(tmp_path)
    model = build(config, 200)
    open_folder(tmp_path, config, 200).load_into(model)
    examples = parity.probes(counterpart, model, 200)
    ours = parity.our_outputs(counterpart, model, examples, {})
    assert parity.largest_difference(ours, parity.their_outputs(tmp_path, architecture, examples, ["logits"])) <= 1e-4


def test_an_untied_t5_comes_in_with_its_head(tmp_path):
    config = T5Config(name="t5", **SHAPE, activation="gated_gelu", tie_embeddings=False)
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            num_layers=2,
            d_model=32,
            num_heads=4,
            d_kv=8,
            d_ff=128,
            vocab_size=200,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    ).eval()
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(200, 32))
    theirs.save_pretrained(tmp_path)
    model = build(config, 200).eval()
    open_folder(tmp_path, config, 200).load_into(model)
    tokens = torch.randint(0, 200, (1, 20))
    with torch.no_grad():
        expected = theirs(input_ids=tokens, decoder_input_ids=tokens).logits
        assert (model.head.logits(model(tokens, tokens)) - expected).abs().max() <= 1e-4


def test_faults_of_a_folder_are_listed_before_anything_starts(train, data, tmp_path, capsys, monkeypatch):
    to_folder(train("gpt2"), tmp_path / "out")
    shape = ["model.num_layers=3", "model.hidden_size=64", f"model.init_from={tmp_path}/out"]
    with pytest.raises(InputError, match=r"num_layers is 3, the folder's is 2.*hidden_size is 64, the folder's is 32"):
        pretrain(["model=gpt_debug", *SMALL, *shape, *TRAIN, f"data.path={data}", f"run_dir={tmp_path}/r"])
    assert [f.name for f in (tmp_path / "r").iterdir()] == ["verdict.json"]
    config = GPTConfig(name="gpt", **SHAPE)
    vocabulary = json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"]
    with pytest.raises(InputError, match="its vocabulary has"):
        open_folder(tmp_path / "out", config, vocabulary + 1)
    other = Tokenizer.train(["something else altogether, " * 200], "bpe", 290)
    with pytest.raises(InputError, match=r"tokenizer\.json encodes .* differently"):
        open_folder(tmp_path / "out", config, vocabulary, other)
    with pytest.raises(InputError, match="model_type 'gpt2'"):
        open_folder(tmp_path / "out", T5Config(name="t5", **SHAPE), vocabulary)
    (tmp_path / "out" / "model.safetensors").rename(tmp_path / "out" / "pytorch_model.bin")
    with pytest.raises(InputError, match="never from a pickle"):
        open_folder(tmp_path / "out", config, vocabulary)


def test_a_folder_that_was_there_is_never_removed(tmp_path, monkeypatch):
    taken = tmp_path / ".out.0.tmp"
    taken.mkdir()
    (taken / "theirs").write_text("kept")
    monkeypatch.setattr(export_module, "temporary_name", lambda _: str(taken))
    with pytest.raises(InputError, match="File exists"), export_module.new_folder(tmp_path / "out"):
        pass
    assert (taken / "theirs").read_text() == "kept"
    monkeypatch.undo()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="exists already"), export_module.new_folder(tmp_path / "link"):
        pass
    assert sorted(f.name for f in tmp_path.iterdir()) == [".out.0.tmp", "link"]
