"""What a user of Hydra types: options, own folders, help, completion, pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_pipeline.common.completion import completions
from data_pipeline.common.compose import compose_config, composed, conf_dir
from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import to_dict
from data_pipeline.prepare import PrepareConfig
from pretraining.commands.check import CheckConfig
from pretraining.commands.dashboard import DashboardConfig
from pretraining.commands.replay import ReplayConfig
from pretraining.commands.report import ReportConfig
from pretraining.commands.show import ShowConfig
from pretraining.commands.submit import SubmitConfig
from pretraining.config import RunConfig, load_config
from pretraining.hub.export import ExportConfig
from tests.helpers import ROOT, command, run_process

COMMANDS = {
    "pretraining.train": ("pretrain", RunConfig),
    "data_pipeline.prepare": ("prepare", PrepareConfig),
    "pretraining.export": ("export", ExportConfig),
    "pretraining.commands.show": ("show", ShowConfig),
    "pretraining.commands.replay": ("replay", ReplayConfig),
    "pretraining.commands.submit": ("submit", SubmitConfig),
    "pretraining.commands.check": ("check", CheckConfig),
    "pretraining.commands.dashboard": ("dashboard", DashboardConfig),
    "pretraining.commands.report": ("report", ReportConfig),
}
TRAINING = ("pretraining.train", "pretraining.commands.submit")  # which choose a model, an objective, ...


@pytest.mark.parametrize("module", [*TRAINING, "data_pipeline.prepare"])
def test_help_comes_without_torch(module: str) -> None:
    done = run_process(sys.executable, "-X", "importtime", "-m", module, "--help")
    assert done.returncode == 0 and " torch" not in done.stderr
    for part in ("Example:", "Options:", "Groups:", "Keys"):
        assert part in done.stdout


@pytest.mark.parametrize("module", COMMANDS)
def test_help_has_a_line_for_every_key(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(module, "--help") == 0
    shown = capsys.readouterr().out
    for key in composed(*COMMANDS[module][:1], [], COMMANDS[module][1]).keys.values():
        assert key.section is not None or f"  {key.path}" in shown


def test_help_is_that_of_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("pretraining.train", "model=t5_3b", "--help", "optimizer.lr=0.5", "optimizer=lamb") == 0
    shown = capsys.readouterr().out
    assert "  model.head_dim=128 (integer above 0, or null): features of an attention head; null means" in shown
    assert "  optimizer.lr=0.5 (number above 0): peak of the learning rate" in shown
    assert "  optimizer.name=lamb (adam|adamw|lamb|adafactor): " in shown
    assert "  objective.fim_rate=0.0 (number at least 0 and at most 1): " in shown


@pytest.mark.parametrize("module", COMMANDS)
def test_help_names_groups_only_where_there_are_some(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, schema = COMMANDS[module]
    assert command(module, "--help") == 0
    options = capsys.readouterr().out.split("Options:")[1].split("Keys")[0]
    groups = composed(name, [], schema).groups.chosen
    assert ("--config-dir" in options) == ("with choices" in options) == bool(groups)
    if groups:
        assert f"as in {groups[0]}=" in options


def _members(group: str) -> list[str]:
    return [f"{group}={file.stem}" for file in sorted((conf_dir() / group).glob("*.yaml"))]


def test_no_key_is_without_an_explanation() -> None:
    derived = {
        f"model={file.stem}" for file in (conf_dir() / "model").glob("*.yaml") if "\nname: " not in file.read_text()
    }
    cases = [
        ("pretrain", [m], RunConfig)
        for group in ("model", "objective", "optimizer", "scheduler")
        for m in _members(group)
        if m not in derived  # another size of a family that stands here already
    ]
    cases += [("prepare", [m], PrepareConfig) for m in _members("corpus")]
    cases += [("submit", [m], SubmitConfig) for m in _members("cluster")]
    cases += [(name, [], schema) for name, schema in COMMANDS.values()]
    silent = {
        f"{key.owner.__name__}.{key.name}" for c in cases for key in composed(*c).keys.values() if not key.meaning
    }
    assert silent == set()


def test_cfg_job_prints_the_whole_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("pretraining.train", "--cfg", "job", "optimizer=lamb", "data.path=x") == 0
    assert yaml.safe_load(capsys.readouterr().out) == to_dict(load_config(["optimizer=lamb", "data.path=x"]))
    assert command("data_pipeline.prepare", "-c", "job") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["output"] == printed["corpus"]["inputs"] == "???" and printed["tokenizer"]["vocab_size"] == 8192
    assert command("pretraining.train", "--cfg", "job", "train.stepz=1") == 2
    assert command("pretraining.train", "--cfg", "hydra") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "optimizer=adamw,lamb"], "--multirun needs run_dir=FOLDER"),
        (["--multirun=1"], "--multirun=1 is not supported; --multirun takes no value"),
        (["--config-path", "x"], "--config-dir DIR"),
        (["--config-dir"], "--config-dir needs a value"),
        (["--config-dir", "nowhere"], "there is no such folder"),
        (["--typo"], "unknown option '--typo'"),
        (["--info", "defaults"], "--info defaults is not supported"),
        (["--info=searchpath"], "--info=searchpath is not supported"),
        (["--help=model"], "--help=model is not supported; --help takes no value"),
        (["--version=1"], "--version takes no value"),
        (["--resolve=1"], "--resolve takes no value"),
        (["--cfg", "all"], "--cfg all is not supported; use --cfg job"),
        (["-sc", "install=tcsh"], "bash, fish, zsh"),
    ],
)
def test_options_that_are_not_supported_say_so(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("pretraining.train", *arguments) == 2
    assert said in capsys.readouterr().err


def test_several_problems_stand_below_the_word_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("pretraining.train", "train.stepz=1") == 2
    assert capsys.readouterr().err.startswith("error:\n- unknown key 'train.stepz'")
    assert command("pretraining.train", "train.stepz=1", "data.path=x") == 2
    assert capsys.readouterr().err.startswith("error: unknown key 'train.stepz'")


def test_info_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("pretraining.train", "--version") == 0
    assert capsys.readouterr().out.startswith("pretraining ")
    assert command("pretraining.train", "--info", "all") == 0
    assert command("pretraining.train", "--info", "model=t5_base") == 0
    shown = capsys.readouterr().out
    assert "torch" in shown and str(conf_dir()) in shown and "model=t5_base" in shown


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's folder: a model, an experiment that takes it, a group of its own."""
    files = {
        "model/mine": "defaults: [gpt2_small, _self_]\nnum_layers: 3\n",
        "experiment/mine": "# @package _global_\ndefaults:\n  - override /model: mine\ntrain: {steps: 7}\n",
        "site/cluster": "# @package _global_\nengine: {shard_optimizer: true}\n",
        "corpus/books": "defaults: [text, _self_]\ninputs: [books]\ntext_field: body\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.mark.parametrize("module", [m for m in COMMANDS if m not in TRAINING])
def test_commands_know_only_groups_of_their_own(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("optimizer=adamw", "+optimizer=adamw"):
        assert command(module, word) == 2
        said = capsys.readouterr().err
        assert "unknown key 'optimizer'" in said and "did you mean" not in said
    assert command(module, "hydra.run.dir=x") == 2
    assert "hydra itself is not configured here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("beside", "key"),
    [
        ("tokenizer.path=x", "tokenizer.sample_bytes=3"),
        ("tokenizer.model_type=char", "tokenizer.sample_bytes=3"),
        ("tokenizer.path=x", "tokenizer.vocab_size=300"),
        ("corpus=images", "block_tokens=300"),
    ],
)
def test_every_condition_of_a_key_counts(beside: str, key: str) -> None:
    with pytest.raises(InputError, match=f"{key.split('=')[0]} has no effect with "):
        compose_config("prepare", ["corpus.inputs=[x]", "output=o", beside, key], PrepareConfig)
    compose_config("prepare", ["corpus.inputs=[x]", "output=o", key], PrepareConfig)


def test_own_groups_and_experiments_are_composed_like_ours(own: Path) -> None:
    arguments = [f"--config-dir={own}", "data.path=x", "experiment=mine", "+site=cluster", "train.log_every=3"]
    config = load_config(arguments)
    assert (config.model.num_layers, config.model.hidden_size, config.train.steps) == (3, 768, 7)
    assert config.engine.shard_optimizer and config.train.log_every == 3
    prepare = compose_config("prepare", [f"--config-dir={own}", "corpus=books", "output=o"], PrepareConfig)
    assert to_dict(prepare)["corpus"]["text_field"] == "body"


def test_the_option_takes_its_folder_as_hydra_does(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--config-dir", str(own)], ["-cd", str(own)], [f"--config-dir={own}"]):
        assert command("pretraining.train", "experiment=mine", *option, "--cfg", "job") == 0
        assert yaml.safe_load(capsys.readouterr().out)["train"]["steps"] == 7


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("experiment/bad", "# @package _global_\ntrain: {stepz: 7}\n", "train.stepz: there is no such key"),
        ("experiment/bad", "train: {steps: 7}\n", "does the file that gives it begin with '# @package _global_'?"),
        (
            "experiment/bad",
            "# @package _global_\ntrain: {steps: many}\n",
            "train.steps: Input should be a valid integer",
        ),
        ("experiment/bad", "# @package _global_\ntrain: {steps\n", "bad.yaml is not YAML"),
        ("experiment/bad", "defaults: [override /model: bert_base]\n", "is '# @package _global_' the first line"),
        ("experiment/bad", "# @package _global_\ndefaults:\n  - override /model: gone\n", "cannot be composed"),
        (
            "experiment/bad",
            "# @package _global_\nrun_dir: ${oc.env:HOME}\n",
            "run_dir\n    object_type=dict\n${resolver:...} is not supported: it could bring secrets",
        ),
        (
            "experiment/bad",
            "# @package _global_\nmodel: {positions: learned, rope_theta: 5.0}\n",
            "model.rope_theta, which a file of the configuration gives, has no effect with model.positions=learned",
        ),
        (
            "experiment/bad",
            "# @package _global_\ndefaults: [override /optimizer: lamb]\noptimizer: {relative_step: true}\n",
            "optimizer.name=lamb has no such key; if an experiment gives it, ~optimizer.relative_step removes it",
        ),
        (
            "experiment/bad",
            "# @package _global_\ntracking: {tags: ['\\${oc.env:HOME}']}\n",
            "tracking.tags[0]: a value that holds ${ is not supported",
        ),
        ("model/gpt2_small", "name: gpt\n", "is the name of a file in"),
    ],
)
def test_own_files_are_checked_like_ours(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / f"{name}.yaml").write_text(text)
    chosen = ["experiment=bad"] if name.startswith("experiment") else []
    with pytest.raises(InputError) as error:
        load_config([f"--config-dir={tmp_path}", "data.path=x", *chosen])
    assert said in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "tracking: {run_name: '${oc.env:KEPT}'}",
        "tracking: {run_name: '${${tracking.project}:KEPT}', project: oc.env}",
        "tracking: {run_name: '${oc.${tracking.project}:KEPT}', project: env}",
        "tracking: {run_name: 'a${oc.decode:${oc.env:KEPT}}'}",
        "tracking: {tags: ['${oc.env:KEPT}']}",
        "train: {freeze: '${oc.create:[${oc.env:KEPT}]}'}",
        "defaults: [{override /model: '${oc.env:KEPT}'}]",
        "defaults: [{/model@tracking: '${oc.env:KEPT}'}]",
    ],
)
def test_no_environment_variable_reaches_the_configuration(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KEPT", "bert_large")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\n{text}\n")
    assert command("pretraining.train", f"--config-dir={tmp_path}", "experiment=mine", "--cfg", "job") == 2
    shown = capsys.readouterr()
    assert "could bring secrets" in shown.err and "bert_large" not in shown.out + shown.err


def test_resolvers_of_others_are_there_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    from omegaconf import OmegaConf

    monkeypatch.setenv("KEPT", "here")
    load_config(["data.path=x"])
    assert OmegaConf.create({"a": "${oc.env:KEPT}"}).a == "here"


def test_interpolations_see_overrides_and_defaults(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    name = "lr-${optimizer.lr}-steps-${train.steps}-seed-${train.seed}-${model.num_layers}"
    tracking = f"{{run_name: '{name}', project: '${{.run_name}}'}}"
    (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\ntracking: {tracking}\n")
    arguments = [f"--config-dir={tmp_path}", "experiment=mine", "data.path=x"]
    config = load_config([*arguments, "optimizer.lr=0.25", "model=gpt2_medium", "train.steps=7"])
    assert config.tracking.run_name == config.tracking.project == "lr-0.25-steps-7-seed-1-24"
    assert load_config([*arguments, "tracking.project=p"]).tracking.run_name.endswith("steps-1000-seed-1-12")


def test_an_interpolation_of_no_key_is_reported(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\ntracking: {run_name: '${train.sed}'}\n")
    with pytest.raises(InputError, match=r"Interpolation key 'train\.sed' not found"):
        load_config([f"--config-dir={tmp_path}", "experiment=mine", "data.path=x"])


def test_null_means_no_recipe() -> None:
    plain = load_config(["data.path=x"])
    for none in (
        ["experiment=null"],
        ["debug=null", "experiment=null"],
        ["experiment=quickstart_t5", "experiment=null"],
    ):
        assert load_config(["data.path=x", *none]) == plain


def test_a_command_without_standard_output_ends_by_its_own_code() -> None:
    def closed(*arguments: str) -> tuple[int, str]:
        line = [sys.executable, "-m", "pretraining.train", *arguments]
        done = subprocess.run(
            ["sh", "-c", '"$@" >&-', "sh", *line], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    assert closed("--version") == (0, "")
    assert closed("train.stepz=1")[0] == 2


def test_a_key_that_a_file_gives_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\noptimizer: {betas: [0.9, 0.98], lr: 0.5}\n"
    (tmp_path / "experiment/mine.yaml").write_text(text)
    arguments = [f"--config-dir={tmp_path}", "data.path=x", "experiment=mine", "optimizer=adafactor"]
    with pytest.raises(InputError, match=r"~optimizer\.betas removes it"):
        load_config(arguments)
    config = load_config([*arguments, "~optimizer.betas", "~optimizer.lr"])
    assert to_dict(config)["optimizer"]["lr"] == 0.01


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("model=gpt2_", ["model=gpt2_large", "model=gpt2_medium", "model=gpt2_small", "model=gpt2_xl"]),
        ("mod", ["model.", "model=", "modules="]),
        ("optimizer=lamb optimizer.tr", ["optimizer.trust_clip="]),
        ("scheduler=constant scheduler.", ["scheduler.name=", "scheduler.warmup_fraction="]),
        ("train.precision=", ["train.precision=fp32", "train.precision=bf16", "train.precision=fp16"]),
        ("model.bias=t", ["model.bias=true"]),
        ("optimizer.betas=", ["optimizer.betas=[0.9,0.95]"]),
        ("--v", ["--version"]),
        ("--cfg ", ["job"]),
        ("model=nothing optimizer.", ["optimizer.betas=", "optimizer.eps=", "optimizer.layer_decay="]),
        ("not/an/override optimizer=lamb_b", ["optimizer=lamb_bert_32k", "optimizer=lamb_bert_4k"]),
    ],
)
def test_what_the_last_word_may_become(line: str, expected: list[str]) -> None:
    assert completions("pretrain", RunConfig, line)[: len(expected)] == expected


def test_own_members_are_completed(own: Path) -> None:
    assert completions("pretrain", RunConfig, f"--config-dir {own} model=mi") == ["model=mine"]
    assert completions("pretrain", RunConfig, f"--config-dir {own} model=mae_d") == ["model=mae_debug"]
    assert completions("pretrain", RunConfig, f"--config-dir {own} +site=") == ["+site=cluster"]


def test_completion_works_in_bash(tmp_path: Path) -> None:
    """As bash does it when Tab is pressed: the function that is registered is called with the line so far."""
    program = tmp_path / "pretrain"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{_CALL}" "$@"\n')
    program.chmod(0o755)
    script = """
    eval "$(pretrain -sc install=bash)"
    complete -p pretrain
    COMP_WORDS=(pretrain optimizer=lamb model=gpt2_s); COMP_CWORD=2
    COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}
    hydra_bash_completion
    echo "${COMPREPLY[@]}"
    eval "$(pretrain -sc uninstall=bash)"
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert "-F hydra_bash_completion pretrain" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "model=gpt2_small" and done.returncode == 0


_CALL = "import sys; sys.argv[0] = 'pretrain'; from pretraining.train import main; sys.exit(main())"


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_a_closed_pipe_ends_quietly(arguments: list[str]) -> None:
    done = _head_of("-m", "pretraining.train", *arguments)
    assert done[0] in (0, 141) and done[1] == ""


def test_a_closed_pipe_ends_inspection_quietly(corpus: Path) -> None:
    code, errors = _head_of(
        "-m", "pretraining.train", "model=gpt_debug", f"data.path={corpus}", "inspect=200", "tracking.wandb=disabled"
    )
    assert code in (0, 141) and "Traceback" not in errors and "BrokenPipe" not in errors


@pytest.mark.parametrize("inspect", [1, 300])
def test_output_that_cannot_be_written_is_told(corpus: Path, inspect: int) -> None:
    """As on a full disk, at the end or in between."""
    command = [sys.executable, "-m", "pretraining.train", "model=gpt_debug", f"data.path={corpus}"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command, f"inspect={inspect}"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written to: No space left on device\n"


@pytest.mark.parametrize(("sink", "code", "told"), [("pipe", 141, ""), ("full", 1, "error: standard output cannot")])
def test_data_is_not_blamed_for_its_reports(tmp_path: Path, sink: str, code: int, told: str) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text(f"{number} " * 400)
    command = ["-m", "data_pipeline.prepare", f"corpus.inputs={tmp_path}/*.txt", f"output={tmp_path}/out"]
    command += ["tokenizer.vocab_size=280", "num_workers=0"]
    if sink == "pipe":
        assert _head_of(*command) == (code, told)
        return
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, *command], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == code and done.stderr.startswith(told) and done.stderr.count("\n") == 1


def _head_of(*arguments: str) -> tuple[int, str]:
    """Python with these arguments, its output closed before it is read -> exit code, standard error."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    return process.wait(timeout=120), errors
