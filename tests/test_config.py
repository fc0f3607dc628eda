import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import yaml

from data_pipeline.common.compose import compose_config, composed, conf_dir
from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import configclass, to_dict
from data_pipeline.common.schema import get
from data_pipeline.prepare_config import PrepareConfig
from data_pipeline.verify import VerifyConfig
from pretraining.commands.replay import ReplayConfig
from pretraining.commands.show import ShowConfig
from pretraining.config import RunConfig, identity, load_config
from pretraining.hub.export import ExportConfig
from pretraining.optim.registry import OPTIMIZERS
from pretraining.run.run_dir import read_run_config, write_config
from pretraining.run.verdict import named_run_dir
from pretraining.synonyms import SYNONYMS
from tests.helpers import ROOT, pretrain_process


def problems(*overrides, ranks=1):
    with pytest.raises(InputError) as error:
        load_config(list(overrides), ranks)
    return str(error.value)


@pytest.mark.parametrize("key", ["data.path", "run_dir", "model.init_from", "train.resume"])
def test_a_tilde_is_the_home_folder(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for given, expected in (("~/a b", "/home/me/a b"), ("~", "/home/me"), ("a~/x", "a~/x"), ("never", "never")):
        config = load_config(["model=gpt_debug", "data.path=x", f"{key}='{given}'"])
        assert get(to_dict(config), key) == expected
    assert named_run_dir(["run_dir='~/x'"]) == Path("/home/me/x")  # before the config is read


def test_the_run_dir_is_known_before_the_config_is_read():
    for given, expected in (("a b", "a b"), ("a$b%j", "a$b%j"), ("x=1", "x=1")):
        for override in (f"run_dir='{given}'", f"run_dir={given}", f"++run_dir={given}", f'run_dir="{given}"'):
            assert named_run_dir(["run_dir=first", override, "train.run_dir=no"]) == Path(expected)
    for nothing in ("run_dir=null", "run_dir=", "run_dir=${oc.env:HOME}", "x.run_dir=a"):
        assert named_run_dir([nothing]) is None


def test_a_tilde_is_the_home_folder_for_every_command(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    made = compose_config("export", ["checkpoint=~/c", "output=~/o", "data_path=~/d"], ExportConfig)
    assert (made.checkpoint, made.output, made.data_path) == ("/home/me/c", "/home/me/o", "/home/me/d")
    assert compose_config("show", ["run_dir=~/r"], ShowConfig).run_dir == "/home/me/r"
    assert compose_config("replay", ["run_dir=~/r", "step=1"], ReplayConfig).run_dir == "/home/me/r"
    assert compose_config("verify", ["output=~/o"], VerifyConfig).output == "/home/me/o"
    keys = ["corpus.inputs=[~/a,b]", "corpus.exclude=[~/a/x*]", "output=~/o", "tokenizer.path=~/t.model"]
    data = compose_config("prepare", keys, PrepareConfig)
    assert (data.output, data.tokenizer.path) == ("/home/me/o", "/home/me/t.model")
    assert to_dict(data.corpus)["inputs"] == ["/home/me/a", "b"]
    assert to_dict(data.corpus)["exclude"] == ["/home/me/a/x*"]


@pytest.mark.parametrize("corpus", ["text", "images"])
def test_one_input_needs_no_brackets(corpus, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for given, expected in (("~/x", ["/home/me/x"]), ("txt", ["txt"]), ("'a,b'", ["a,b"])):
        data = compose_config("prepare", [f"corpus={corpus}", f"corpus.inputs={given}", "output=o"], PrepareConfig)
        assert to_dict(data.corpus)["inputs"] == expected


@pytest.mark.parametrize(
    "override, told",
    [
        ("train.stepz=3", "did you mean 'train.steps'"),
        ("lr=3", "did you mean 'optimizer.lr'"),
        ("modle=gpt2_small", "did you mean 'model=gpt2_small'"),
        ("+typo=1", "unknown key 'typo'"),
        ("++train.typo=1", "unknown key 'train.typo'"),
        ("~model.num_layers", "model.num_layers: Field required"),
        ("~train.stepz", "did you mean 'train.steps'"),
        ("~train.steps", "no file of the configuration gives train.steps"),
        ("~model.num_layers=12", "~ takes no value"),
        ("train.steps=1,2", "--multirun"),
        ("model=gpt2_smal", "did you mean 'gpt2_small'"),
        ("train.steps=many", "train.steps: Input should be a valid integer (got 'many')"),
        ("train.steps=1.5", "train.steps"),
        ("train.steps=true", "train.steps"),
        ("train.precision=fp8", "'fp32', 'bf16' or 'fp16'"),
        ("optimizer.betas=[0.9]", "optimizer.betas"),
        ("optimizer.lr=-1", "optimizer.lr"),
        ("model.num_heads=7", "model.hidden_size=768 is not divisible by model.num_heads=7"),
        ("data.seq_len=2048", "longer than model.max_seq_len=1024"),
        ("train.global_batch_size=63", "is not divisible by train.micro_batch_size=8 x 1"),
        ("engine.zero_stage=2", "needs engine=deepspeed"),
        ("engine.tensor_parallel=2", "engine.tensor_parallel"),
        ("=3", "not an override of the form key=value: it has no key"),
        ("notanoverride", "not an override of the form key=value"),
    ],
)
def test_each_problem_is_reported_with_what_would_be_right(override, told):
    assert told in problems("data.path=x", override)


def test_all_problems_are_reported_in_one_message():
    said = problems("train.stepz=3", "model=gpt2_smal", "train.log_every=no", "model.num_heads=7", "+typo=1")
    for part in ("train.stepz", "gpt2_smal", "train.log_every", "num_heads=7", "typo", "data.path is missing"):
        assert part in said


@pytest.mark.parametrize(
    "overrides, told",
    [
        (
            ["model.num_heads=6", "model.hidden_size=96"],
            "model.num_heads=6 is not divisible by engine.tensor_parallel=4",
        ),
        (["model.num_kv_heads=2"], "model.num_kv_heads=2 is not divisible by engine.tensor_parallel=4"),
        (["model.intermediate_size=54"], "model.intermediate_size=54 is not divisible by"),
        (["data.seq_len=30", "engine.sequence_parallel=true"], "sequences of 30 tokens are not divisible by"),
        (
            ["model=vit_debug", "objective=image_classification", "engine.sequence_parallel=true"],
            "the ViT with model.pooling=mean has no class token",
        ),
    ],
)
def test_what_tensor_parallelism_cannot_divide_is_reported(overrides, told):
    assert told in problems("data.path=x", "engine=megatron", "engine.tensor_parallel=4", *overrides, ranks=4)


def test_ranks_are_asked_for_and_no_environment(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    config = load_config(["data.path=x"])
    assert config.problems(ranks=8) == []
    assert "3 data-parallel ranks" in config.problems(ranks=3)[0]
    shared = load_config(["data.path=x", "engine=megatron", "engine.tensor_parallel=2"], ranks=16)
    assert shared.problems(ranks=5) == ["the number of ranks (5) is not divisible by engine.tensor_parallel=2"]


def test_exit_code_2_before_torch_is_imported():
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['pretrain', 'train.stepz=3', 'model.num_heads=7'];"
        "from pretraining.train import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "train.steps" in done.stderr and "num_heads=7" in done.stderr and "Traceback" not in done.stderr


def test_the_deepspeed_launchers_flag_does_not_reach_hydra():
    done = pretrain_process("--local_rank=0", "train.stepz=3")
    assert done.returncode == 2 and "local_rank" not in done.stderr


def test_identity_leaves_out_what_may_change():
    a = identity(load_config(["data.path=x"]), "sha")
    b = identity(
        load_config(
            [
                "data.path=y",
                "engine=deepspeed",
                "engine.zero_stage=2",
                "train.micro_batch_size=4",
                "train.precision=bf16",
                "data.num_workers=0",
                "train.steps=5",
                "tracking.wandb=online",
                "scheduler.warmup_steps=5",
                "train.eval_every=3",
                "model.activation_checkpointing=true",
            ]
        ),
        "sha",
    )
    assert a == b
    for change in (
        "model.num_layers=3",
        "train.seed=2",
        "train.global_batch_size=32",
        "data.seq_len=64",
        "optimizer.lr=0.1",
        "objective.cross_document_attention=true",
    ):
        assert identity(load_config(["data.path=x", change]), "sha") != a
    assert identity(load_config(["data.path=x"]), "other") != a


@pytest.mark.parametrize("overrides", [[], ["experiment=quickstart_t5"], ["scheduler=constant"]])
def test_a_config_survives_writing_and_reading(overrides, tmp_path):
    config = load_config(["data.path=/x", *overrides])
    write_config(config, tmp_path, {})
    assert read_run_config(tmp_path) == config
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written == to_dict(config)
    assert written["train"]["eval_batches"] and written["optimizer"]["layer_decay"] == 1.0


def test_a_broken_config_of_a_run_is_reported_by_key(tmp_path):
    write_config(load_config(["data.path=x"]), tmp_path, {})
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("name: adamw", "name: sgd"))
    with pytest.raises(InputError, match="optimizer: name=sgd is unknown; there are adafactor, adam, adamw, lamb"):
        read_run_config(tmp_path)


@pytest.mark.parametrize(
    "overrides, fitting",
    [
        (["model=bert_base"], "objective=translation_lm fits model=bert_base; objective=causal_lm fits model="),
        (["model=vit_small"], "objective=image_classification fits"),
        (["objective=span_corruption"], "objective=span_corruption fits model=t5_small or model=t5_v1_1_small"),
    ],
)
def test_what_would_fit_is_named(overrides, fitting):
    assert fitting in problems("data.path=x", *overrides)


def test_one_fault_is_one_problem():
    said = problems("data.path=x", "engine=torch", "engine.tensor_parallel=2")
    assert said == "engine.tensor_parallel=2 needs engine=megatron, or engine=deepspeed"


def test_another_class_is_chosen_by_a_member():
    said = problems("data.path=x", "model=bert_base", "objective=masked_lm", "model.name=gpt")
    assert "model.name=gpt: the chosen member of a group sets it; choose one with model=" in said
    assert "|bert_base|" in said
    assert "optimizer=adafactor|" in problems("data.path=x", "optimizer.name=lamb")
    load_config(["data.path=x", "optimizer.name=adamw"])


@pytest.mark.parametrize("override", ["+extra=foo", "zzzz=1", "tracker.qqqq=1"])
def test_nothing_is_guessed_where_nothing_is_near(override):
    said = problems("data.path=x", override)
    assert "did you mean" not in said and "--help lists the keys" in said


def test_an_empty_choice_is_answered_with_the_choices():
    said = problems("data.path=x", "model=")
    assert "did you mean" not in said and "the choices are " in said and ", bert_base" in said


@pytest.mark.parametrize(
    "text, hint",
    [
        ("train: {max_steps: 7}", "train.max_steps: there is no such key (did you mean 'train.steps'?)"),
        ("optimizer: {learning_rate: 7}", "optimizer.name=adamw has no such key (did you mean 'optimizer.lr'?)"),
        ("learning_rate: 7", "(did you mean 'optimizer.lr'?)"),
        ("train: {epochs: 7}", "length is given in steps: train.steps=N"),
    ],
)
def test_other_tools_names_are_understood_in_files(text, hint, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\n{text}\n")
    assert hint in problems(f"--config-dir={tmp_path}", "experiment=mine", "data.path=x")


HAS_NO_EFFECT = [
    (["objective=masked_lm", "model=bert_debug", "objective.pairing=none"], "objective.pair_weight=5"),
    (["objective=span_corruption", "model=t5_debug", "objective.mode=ul2"], "objective.noise_density=0.5"),
    (["objective=span_corruption", "model=t5_debug", "objective.mode=prefix_lm"], "objective.mean_span_length=2"),
    (["model=gpt2_small"], "model.rope_theta=5"),
    (["model=llama_7b", "model.positions=learned"], "model.rope_theta=5"),
    (["objective=image_classification", "model=vit_debug"], "objective.rand_augment_magnitude=3"),
    (["optimizer=adafactor", "optimizer.relative_step=false"], "optimizer.warmup_init=false"),
    (["optimizer=lamb", "optimizer.weight_decay=0.0"], "optimizer.decoupled_decay=true"),
]


@pytest.mark.parametrize("mode, override", HAS_NO_EFFECT, ids=str)
def test_a_key_without_effect_is_refused_with_the_reason(mode, override):
    said = problems("data.path=x", *mode, override)
    assert override.split("=")[0] + " has no effect with " in said
    load_config(["data.path=x", *mode])


@pytest.mark.parametrize(
    "member, override, having",
    [
        ("scheduler=constant", "scheduler.min_ratio=0.2", "warmup_cosine, warmup_linear"),
        ("scheduler=inverse_sqrt", "scheduler.decay_fraction=0.2", "warmup_stable_decay has it"),
        ("optimizer=adamw", "optimizer.relative_step=false", "adafactor has it"),
        ("optimizer=adafactor", "optimizer.betas=[0.9,0.99]", "adam, adamw, lamb have it"),
        ("model=gpt2_small", "model.drop_path=0.1", "vit, mae have it"),
    ],
)
def test_a_key_of_another_choice_names_the_choices_that_have_it(member, override, having):
    group = member.split("=")[0]
    said = problems("data.path=x", member, override)
    assert f"{group}.name=" in said and "has no such key" in said and having in said


@pytest.mark.parametrize(
    "overrides, key, default",
    [
        (["experiment=vit_s16_imagenet", "objective.rand_augment_ops=0"], "objective.rand_augment_magnitude", 10.0),
        (["experiment=quickstart_t5", "objective.mode=ul2"], "objective.mean_span_length", 3.0),
    ],
)
def test_what_a_recipe_says_gives_way_to_a_mode_that_has_no_use_for_it(overrides, key, default):
    section, name = key.split(".")
    assert to_dict(load_config(["data.path=x", *overrides]))[section][name] == default


@pytest.mark.parametrize(
    "override, hint",
    [
        ("optimizer.learning_rate=1", "did you mean 'optimizer.lr'"),
        ("train.lr=1", "did you mean 'optimizer.lr'"),
        ("learning_rate=1", "did you mean 'optimizer.lr'"),
        ("train.bf16=true", "did you mean 'train.precision=bf16'"),
        ("train.fp16=true", "did you mean 'train.precision=fp16'"),
        ("model.d_model=3", "did you mean 'model.hidden_size'"),
        ("model.n_layer=3", "did you mean 'model.num_layers'"),
        ("model.num_hidden_layers=3", "did you mean 'model.num_layers'"),
        ("model.block_size=3", "did you mean 'model.max_seq_len'"),
        ("train.gradient_accumulation_steps=4", "train.global_batch_size / (train.micro_batch_size x"),
        ("train.accumulate_grad_batches=4", "train.global_batch_size / (train.micro_batch_size x"),
        ("train.batch_size=4", "train.global_batch_size counts all ranks' sequences"),
        ("train.max_steps=4", "did you mean 'train.steps'"),
        ("train.epochs=4", "train.steps=N"),
        ("engine.tensor-model-parallel-size=2", "did you mean 'engine.tensor_parallel'"),
        ("engine.tensor_model_parallel_size=2", "did you mean 'engine.tensor_parallel'"),
        ("optimizer.adam_beta2=0.9", "optimizer.betas=[beta1,beta2]"),
        ("trainer.gradient_clip_val=1", "did you mean 'train.grad_clip'"),
        ("trainer.devices=8", "torchrun --nproc-per-node N"),
        ("scheduler.warmup_iters=8", "did you mean 'scheduler.warmup_steps'"),
        ("output_dir=8", "did you mean 'run_dir'"),
        ("hydra.run.dir=x", "did you mean 'run_dir'"),
        ("hydra.verbose=true", "--config-dir DIR"),
    ],
)
def test_other_tools_names_are_understood(override, hint):
    assert hint in problems("data.path=x", override)


def test_every_synonym_names_a_key_that_some_configuration_has():
    models = ("model=t5_debug", "model=gpt_debug", "model=vit_debug", "model=bert_debug")
    objectives = ("objective=masked_lm", "objective=image_classification", "objective=span_corruption")
    found = [composed("pretrain", [m, *o], RunConfig) for m in models for o in ([objectives[0]], [objectives[1]])]
    keys = {key for each in found for key in each.keys}
    for name, target in SYNONYMS.items():
        assert " " in target or target.partition("=")[0] in keys, name


@configclass
class ToyConfig:
    """A toy optimizer.

    lr: the learning rate.
    """

    name: Literal["toy"]
    lr: float = 0.5
    momentum: float = 0.9


def test_a_table_is_extended_by_a_module_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "toy_module.py").write_text(
        "from pretraining.optim.registry import OPTIMIZERS, OptimizerEntry\n"
        "OPTIMIZERS['toy'] = OptimizerEntry('tests.test_config:ToyConfig', 'tests.test_config:Toy')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("pretraining.optim.registry.OPTIMIZERS", dict(OPTIMIZERS))
    toy = ["data.path=/x", "modules=[toy_module]", "optimizer.name=toy"]
    config = load_config([*toy, "optimizer.momentum=0.5"])
    assert to_dict(config)["optimizer"] == {"name": "toy", "lr": 0.5, "momentum": 0.5}
    write_config(config, tmp_path, {})
    assert read_run_config(tmp_path, ["toy_module"]) == config
    with pytest.raises(InputError, match=r"config\.yaml .*if you trust them, add modules=\[toy_module\]"):
        read_run_config(tmp_path)  # whoever wrote it would choose what is run
    assert "did you mean 'optimizer.momentum'" in problems(*toy, "optimizer.momentun=0.5")
    assert "nowhere cannot be imported" in problems("data.path=x", "modules=[nowhere]")
    assert "optimizer: name=sgd is unknown" in problems("data.path=x", "optimizer.name=sgd")


@cache
def member(group: str, name: str):
    return composed("pretrain", [f"{group}={name}"], RunConfig)


@pytest.mark.parametrize("group", ["model", "objective", "optimizer", "scheduler", "engine"])
def test_every_member_of_a_group_has_only_keys_with_an_effect(group):
    """tests/models/catalog.py composes each model with an objective that fits it."""
    for file in sorted((conf_dir() / group).glob("*.yaml")):
        found = member(group, file.stem)
        assert found.problems == [], file


def test_yaml_files_repeat_no_default():
    for group in ("model", "objective", "optimizer", "scheduler", "engine", "data", "tracking"):
        for file in sorted((conf_dir() / group).glob("*.yaml")):
            found = member(group, file.stem)
            own = yaml.safe_load(file.read_text())
            base = next((d for d in own.pop("defaults", []) if isinstance(d, str) and d != "_self_"), None)
            below = member(group, base).whole[group] if base else {}
            for name, value in own.items():
                default = below[name] if base else found.keys[f"{group}.{name}"].default
                assert value != default or (group, name) in {("data", "name"), ("tracking", "wandb")}, (file, name)
