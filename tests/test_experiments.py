"""Every file of conf/experiment composes as it stands and runs two shrunken steps."""

import pytest

from data_pipeline.common.compose import conf_dir
from pretraining.config import load_config
from tests.helpers import metrics, train_alone

EXPERIMENTS = sorted(f.stem for f in (conf_dir() / "experiment").glob("*.yaml"))
SHAPE = ["model.num_layers=1", "model.hidden_size=32", "model.num_heads=2", "model.intermediate_size=64"]
RESNET = ["model.settings={hidden_sizes:[8,16],depths:[1,1],embedding_size:8}", "train.micro_batch_size=4"]
SMALL = [
    "train.global_batch_size=4",
    "train.micro_batch_size=2",
    "train.steps=2",
    "train.eval_every=0",
    "train.checkpoint_every=0",
    "scheduler.warmup_steps=1",
    "train.precision=fp32",
    "train.log_every=1",
    "data.num_workers=0",
    "tracking.wandb=disabled",
]
TEXT = ["model.max_seq_len=32", "data.seq_len=32"]
IMAGES = ["model.image_size=16", "model.patch_size=4"]
DECODER = ["model.decoder_num_layers=1", "model.decoder_hidden_size=32", "model.decoder_num_heads=2"]
# Without a segmenter's words, and a table of similar ones
OPTIONS = {
    "mbart_large": ["objective.language_tokens=false"],  # the data has none
    "bert_wwm_base": ["objective.words=spelled"],
    "macbert_base": ["objective.words=spelled", "objective.replacement=mask"],
}
HEADER = ("Expected", "Hardware", "Data: ", "Command: ")


def text_of(name):
    return (conf_dir() / "experiment" / f"{name}.yaml").read_text()


def data_of(name, path):
    """The override that names prepared data."""
    return f"data.sources={{en: '{path}'}}" if "/data: mixture" in text_of(name) else f"data.path={path}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_shrunken(name, corpus, pairs, digits, tmp_path):
    whole = load_config([f"experiment={name}", data_of(name, "x")])
    header = text_of(name)
    assert name.startswith("quickstart") or all(w in header for w in HEADER)
    images, data = whole.data_kind == "images", {"text": corpus, "pairs": pairs, "images": digits}
    shape = SHAPE + (IMAGES if images else TEXT) + (DECODER if whole.model.name == "mae" else [])
    if images and whole.model.name == "huggingface":
        shape = [*IMAGES[:1], *RESNET]
    head = ["model.head_dim=16"] if whole.model.name == "t5" else []
    segments = ["objective.segment=8"] if whole.objective.name == "recurrent_lm" else []
    unknown = ("model.num_heads", "model.intermediate_size") if whole.model.name == "elmo" else ()
    train_alone(
        f"experiment={name}",
        *[option for option in (*SMALL, *shape) if not option.startswith(unknown)],
        *head,
        *segments,
        *OPTIONS.get(name, []),
        data_of(name, data[whole.data_kind]),
        f"run_dir={tmp_path / 'run'}",
    )
    assert sorted(metrics(tmp_path / "run")) == [1, 2]


OTHERS = [
    ("optimizer=adam", "scheduler=constant", "engine=torch"),
    ("optimizer=adamw", "scheduler=inverse_sqrt", "engine=megatron"),
    ("optimizer=lamb", "scheduler=warmup_stable_decay"),
    ("optimizer=adafactor",),
]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_another_member_of_a_group_needs_no_further_override(name):
    """What is meant for one optimizer, schedule or engine lies in a member of that group."""
    for others in OTHERS:
        config = load_config([f"experiment={name}", *others, data_of(name, "x")])
        assert {o.split("=")[1] for o in others} <= {config.optimizer.name, config.scheduler.name, config.engine.name}


def test_a_recipes_settings_do_not_leak_into_another_optimizer():
    config = load_config(["experiment=quickstart_t5", "optimizer=adamw", "data.path=x"])
    assert config.optimizer == load_config(["data.path=x", "optimizer=adamw"]).optimizer
