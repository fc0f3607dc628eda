import subprocess
import sys

import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import to_dict
from pretraining.config import identity, load_config
from tests.helpers import ROOT, pretrain_process, run_process


def faults(*overrides):
    with pytest.raises(InputError) as error:
        load_config(list(overrides))
    return str(error.value)


@pytest.mark.parametrize(
    "override, told",
    [
        ("train.stepz=3", "did you mean 'train.steps'"),
        ("lr=3", "did you mean 'optimizer.lr'"),
        ("modle=gpt2_small", "did you mean 'model'"),
        ("+typo=1", "unknown key 'typo'"),
        ("++train.typo=1", "unknown key 'train.typo'"),
        ("~optimizer.lr", "optimizer.lr: Field required"),
        ("~train.stepz", "did you mean 'train.steps'"),
        ("train.steps=1,2", "sweep"),
        ("model=gpt2_smal", "did you mean 'gpt2_small'"),
        ("train.steps=many", "train.steps: Input should be a valid integer (got 'many')"),
        ("train.steps=1.5", "train.steps"),
        ("train.steps=true", "train.steps"),
        ("train.precision=fp8", "'fp32', 'bf16' or 'fp16'"),
        ("optimizer.betas=[0.9]", "optimizer.betas"),
        ("optimizer.lr=-1", "optimizer.lr"),
        ("model.num_heads=7", "does not divide model.hidden_size=768"),
        ("data.seq_len=2048", "longer than model.max_seq_len=1024"),
        ("train.global_batch_size=63", "does not divide by train.micro_batch_size=8 x 1"),
        ("engine.zero_stage=2", "needs engine=deepspeed"),
        ("engine.tensor_parallel=2", "engine.tensor_parallel"),
        ("notanoverride", "not an override of the form key=value"),
    ],
)
def test_each_fault_is_told_with_what_would_be_right(override, told):
    assert told in faults("data.path=x", override)


def test_all_faults_are_told_in_one_message():
    said = faults("train.stepz=3", "model=gpt2_smal", "train.log_every=no", "model.num_heads=7", "+typo=1")
    for part in ("train.stepz", "gpt2_smal", "train.log_every", "num_heads=7", "typo", "data.path is missing"):
        assert part in said


def test_a_key_that_an_experiment_sets_for_another_choice_of_a_group_can_be_removed():
    changed = ["data.path=x", "experiment=quickstart_t5", "optimizer=adamw", "optimizer.betas=[0.9,0.98]"]
    assert "~optimizer.relative_step removes it" in faults(*changed)
    assert load_config([*changed, "~optimizer.relative_step"]).optimizer.name == "adamw"


@pytest.mark.parametrize(
    "overrides, told",
    [
        (
            ["model.num_heads=6", "model.hidden_size=96"],
            "model.num_heads=6 does not divide by engine.tensor_parallel=4",
        ),
        (["model.num_kv_heads=2"], "model.num_kv_heads=2 does not divide by engine.tensor_parallel=4"),
        (["model.intermediate_size=54"], "model.intermediate_size=54 does not divide by"),
        (["data.seq_len=30", "engine.sequence_parallel=true"], "sequences of 30 tokens do not divide by"),
        (
            ["model=vit_debug", "objective=image_classification", "engine.sequence_parallel=true"],
            "a ViT with model.pooling=mean does",
        ),
    ],
)
def test_what_tensor_parallelism_cannot_divide_is_told(overrides, told, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    assert told in faults("data.path=x", "engine=megatron", "engine.tensor_parallel=4", *overrides)


def test_ranks_take_part_in_the_check(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "3 data-parallel ranks" in faults("data.path=x")
    monkeypatch.delenv("MASTER_ADDR")
    assert "MASTER_ADDR is not set" in faults("data.path=x")


def test_exit_code_2_before_torch_is_imported():
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['pretrain', 'train.stepz=3', 'model.num_heads=7'];"
        "from pretraining.train import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "train.steps" in done.stderr and "num_heads=7" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["pretraining.train", "data_pipeline.prepare"])
def test_help_shows_groups_and_an_example(module):
    done = run_process(sys.executable, "-X", "importtime", "-m", module, "--help")
    assert done.returncode == 0 and "Groups:" in done.stdout and "xample" in done.stdout
    assert " torch" not in done.stderr


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


def test_a_config_survives_writing_and_reading():
    import json

    import pydantic

    from pretraining.config import RunConfig

    config = load_config(["data.path=x"])
    assert pydantic.TypeAdapter(RunConfig).validate_json(json.dumps(to_dict(config))) == config
