"""An exported folder in the tools that its users have: pipelines, the Trainer, loaders that take any *.safetensors."""

import json
import logging
import os
import sys

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from PIL import Image

from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import InputError
from data_pipeline.prepare import PrepareConfig, prepare
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.config import load_config
from pretraining.hub import export as export_module
from pretraining.hub.card import command_of
from pretraining.hub.export import ExportConfig, export
from pretraining.run.run_dir import read_run_config
from pretraining.train import pretrain

TEXT = "The quick brown fox jumps over the lazy dog.\n\tAnd then:  it sleeps, until 18:30.\n\n"
SHAPE = ["model.num_layers=1", "model.hidden_size=32", "model.num_heads=2", "model.max_seq_len=64"]
TRAIN = [
    "train.steps=2",
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
    "scheduler.warmup_steps=1",
    "train.eval_every=2",
    "train.checkpoint_every=1",
    "tracking.wandb=disabled",
    "data.num_workers=0",
]
RUNS = {
    "gpt": ["model=gpt_debug", *SHAPE],
    "llama": ["model=llama_160m", *SHAPE, "model.num_kv_heads=1", "model.intermediate_size=48"],
    "fim": ["model=llama_160m", *SHAPE, "model.num_kv_heads=1", "model.intermediate_size=48", "objective.fim_rate=0.5"],
    "t5": ["model=t5_debug", "objective=span_corruption", *SHAPE],
    "tied t5": ["model=t5_debug", "objective=span_corruption", *SHAPE, "model.tie_embeddings=true"],
    "bert": ["model=bert_debug", "objective=masked_lm", *SHAPE],
    "vit": ["model=vit_debug", "objective=image_classification"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for n in range(8):
        (folder / f"{n}.txt").write_text(f"Chapter {n}. " + TEXT * 20)
    inputs = [f"corpus.inputs=[{folder}/*.txt]", f"output={folder}/prepared", "tokenizer.vocab_size=330"]
    prepare(compose_config("prepare", [*inputs, "num_workers=0", "block_tokens=2000"], PrepareConfig))
    return folder / "prepared"


@pytest.fixture(scope="module")
def run(data, digits, tmp_path_factory):
    """The folder of a short run of each kind, trained once."""
    done = {}

    def make(kind):
        if kind not in done:
            done[kind] = tmp_path_factory.mktemp(kind) / "run"
            path = digits if kind == "vit" else data
            assert pretrain([*RUNS[kind], *TRAIN, f"data.path={path}", f"run_dir={done[kind]}"]) == 0
        return done[kind]

    return make


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The exported folder of each kind, made once, from the run itself."""
    done = {}

    def make(kind):
        if kind not in done:
            done[kind] = tmp_path_factory.mktemp(kind) / "out"
            export(ExportConfig(str(run(kind)), str(done[kind])))
        return done[kind]

    return make


def test_bert_fills_masks_and_frames_pairs(exported, data):
    tokenizer, ours = transformers.AutoTokenizer.from_pretrained(exported("bert")), Tokenizer.load(data / "tokenizer")
    a, b = ours.encode("The fox"), ours.encode("a dog")
    framed = tokenizer("The fox", "a dog")
    assert framed.input_ids == [ours.cls, *a, ours.sep, *b, ours.sep]
    assert framed.token_type_ids == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert tokenizer("The fox").input_ids == [ours.cls, *a, ours.sep]
    # the mask stands for a word with its space, as in training
    masked = tokenizer(f"The {tokenizer.mask_token} fox", add_special_tokens=False).input_ids
    assert masked == [*ours.encode("The"), ours.mask, *ours.encode(" fox")]
    fill = transformers.pipeline("fill-mask", str(exported("bert")))
    found = fill(f"The quick {tokenizer.mask_token} fox jumps.", top_k=len(tokenizer))
    assert {choice["token"] for choice in found} == set(range(len(tokenizer)))
    assert sum(choice["score"] for choice in found) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_a_decoder_opens_a_document_and_writes(kind, exported, data):
    folder, ours = exported(kind), Tokenizer.load(data / "tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("The fox").input_ids == [ours.bos, *ours.encode("The fox")]
    assert "token_type_ids" not in tokenizer("The fox")
    assert tokenizer("a</s>b", add_special_tokens=False).input_ids == [*ours.encode("a"), ours.eos, *ours.encode("b")]
    write = transformers.pipeline("text-generation", str(folder))
    assert write("The quick", max_new_tokens=4, do_sample=False)[0]["generated_text"].startswith("The quick")
    assert ("n_ctx" in json.loads((folder / "config.json").read_text())) == (kind == "gpt")


def test_t5_ends_its_texts_and_knows_its_sentinels(exported, data):
    folder, ours = exported("t5"), Tokenizer.load(data / "tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The quick <extra_id_0> jumps.").input_ids
    sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    assert ids == [*ours.encode("The quick"), sentinel, *ours.encode(" jumps."), ours.eos]
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    written = model.generate(**tokenizer(["The quick <extra_id_0> jumps."], return_tensors="pt"), max_new_tokens=4)
    assert written.shape[0] == 1 and int(written[0, 0]) == ours.pad


def test_an_image_classifier_in_its_pipeline(exported):
    classify = transformers.pipeline("image-classification", str(exported("vit")))
    found = classify(Image.fromarray(np.zeros((40, 30, 3), np.uint8)), top_k=10)
    assert sorted(choice["label"] for choice in found) == [str(n) for n in range(10)]


@pytest.mark.parametrize("kind", RUNS)
def test_a_folder_loads_without_a_word_and_for_everyone(kind, exported, caplog, monkeypatch):
    folder = exported(kind)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    _, told = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    # transformers 5 says so of every T5 whose head is its own, google/t5-v1_1 included; no config.json prevents it
    expected = "tied weights mapping and config" if kind == "t5" else "nothing"
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [message for message in told if expected not in message]
    assert [f.relative_to(folder).as_posix() for f in folder.rglob("*.safetensors")] == ["model.safetensors"]
    mode = folder.stat().st_mode & 0o666
    assert {f.stat().st_mode & 0o666 for f in folder.rglob("*") if f.is_file()} == {mode}


def test_what_no_objective_uses_has_no_share_of_the_vocabulary(exported, data):
    ours = Tokenizer.load(data / "tokenizer")
    sizes = {"gpt": 0, "llama": 0, "fim": 3, "t5": 100, "bert": 3}
    for kind, more in sizes.items():
        tokenizer = transformers.AutoTokenizer.from_pretrained(exported(kind))
        assert len(tokenizer) == ours.vocab_size + more
    fim = transformers.AutoTokenizer.from_pretrained(exported("fim"))
    assert fim.convert_tokens_to_ids("<fim_prefix>") == ours.vocab_size


@pytest.mark.parametrize("kind", ["llama", "fim"])
def test_other_programs_read_the_same_pieces_from_tokenizer_model(kind, exported, data):
    """As llama.cpp's converter does: a newline is a newline, and special ids stand where the model has them."""
    ours, folder = Tokenizer.load(data / "tokenizer"), exported(kind)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.get_piece_size() == len(tokenizer)
    for text in (TEXT * 3, "\n\n\nx\n", "a\tb\r\n", "  two  spaces ", "é 中 \U0001f600", "def f(x):\n\treturn x\n\n"):
        assert theirs.encode(text) == ours.encode(text) and theirs.decode(theirs.encode(text)) == text
    for i in range(len(tokenizer)):
        if not theirs.is_byte(i) and theirs.id_to_piece(i) < "\uee00":
            assert theirs.is_control(i) == (i in tokenizer.all_special_ids and i != ours.unk)
    assert not [f for f in exported("gpt").iterdir() if f.name == "tokenizer.model"]


def test_the_newest_checkpoint_of_a_run_is_taken_and_named(run, tmp_path, capsys, monkeypatch):
    arguments = ["pretrain-export", f"checkpoint={run('gpt')}", f"output={tmp_path}/out"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert export_module.main() == 0
    assert "its newest is taken, " in (told := capsys.readouterr().out) and "step_00000002" in told
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["step"] == 2


@pytest.mark.parametrize("below", ["", "checkpoints/step_00000002"])
def test_a_checkpoint_of_ours_names_the_command_that_makes_a_folder_of_it(below, run, data, tmp_path):
    start = [f"model.init_from={run('gpt') / below}", f"data.path={data}", f"run_dir={tmp_path}/r"]
    with pytest.raises(InputError, match=r"pretrain-export checkpoint=.* output="):
        pretrain([*RUNS["gpt"], *TRAIN, *start])


def test_the_card_tells_data_losses_and_a_command_that_gives_the_same_run(exported, run, data):
    for kind in ("bert", "vit"):
        card, config = (exported(kind) / "README.md").read_text(), read_run_config(run(kind))
        for part in ("training loss at step 2: ", "validation loss at step 2: ", "train: ", "```yaml\nmodel:"):
            assert part in card
        command = command_of(config)
        assert command is not None and command in card
        assert load_config(_words(command)) == config
    assert "pipeline_tag: fill-mask" in (exported("bert") / "README.md").read_text()


def _words(command):
    import shlex

    return shlex.split(command)[1:]


def fine_tune(model, rows, folder):
    """By the Trainer, as transformers' example scripts do it -> the losses."""
    pytest.importorskip("accelerate")
    settings = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=4,
        logging_steps=1,
        learning_rate=1e-3,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=rows)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_the_trainer_fine_tunes_a_bert(exported, tmp_path):
    """run_glue.py: pairs of texts, a new head of two labels."""
    os.environ.pop("RANK", None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported("bert"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(exported("bert"), num_labels=2)
    rows = [
        {
            **tokenizer("The fox", "jumps" * (n % 2), padding="max_length", max_length=32, truncation=True),
            "labels": n % 2,
        }
        for n in range(12)
    ]
    losses = fine_tune(model, rows, tmp_path)
    assert len(losses) == 3 and np.isfinite(losses).all()


def test_the_trainer_fine_tunes_a_vit_at_the_size_of_its_processor(exported, tmp_path):
    """run_image_classification.py takes the size of its crops from image_processor.size."""
    processor = transformers.AutoImageProcessor.from_pretrained(exported("vit"))
    model = transformers.ViTForImageClassification.from_pretrained(exported("vit"))
    assert "shortest_edge" not in processor.size
    side = (processor.size["height"], processor.size["width"])
    assert side == (model.config.image_size,) * 2
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 40, 3), dtype=np.uint8)).resize(side)
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    rows = [{"pixel_values": (pixels - mean) / std, "labels": n % 10} for n in range(12)]
    losses = fine_tune(model, rows, tmp_path)
    assert len(losses) == 3 and np.isfinite(losses).all()
