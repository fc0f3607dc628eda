"""Bad input ends with exit code 2 and a message that names it; nothing is written over."""

import json
import shutil

import pytest

from tests.helpers import TINY, command, start_ranks

EXIT_INPUT_ERROR = 2


@pytest.fixture
def data(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def run(data, tmp_path, capfd):
    """pretrain with these overrides -> (exit code, what it said)."""

    def pretrain(*overrides):
        code = command(
            "pretraining.train", *TINY, f"data.path={data}", f"run_dir={tmp_path / 'run'}", "train.steps=2", *overrides
        )
        return code, capfd.readouterr().err

    return pretrain


def only_a_verdict(run_dir):
    return [f.name for f in run_dir.iterdir()] == ["verdict.json"]


def test_no_prepared_data(run, tmp_path):
    code, said = run(f"data.path={tmp_path / 'nowhere'}")
    assert code == EXIT_INPUT_ERROR and "nowhere" in said and only_a_verdict(tmp_path / "run")


def test_missing_shard(run, data, tmp_path):
    next((data / "train").glob("*.tar")).unlink()
    code, said = run()
    assert code == EXIT_INPUT_ERROR and ".tar" in said and only_a_verdict(tmp_path / "run")


def test_shard_cut_short(run, data):
    shard = next((data / "train").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    code, said = run()
    assert code == EXIT_INPUT_ERROR and shard.name in said


def damage(data):
    for shard in (data / "train").glob("*.tar"):
        content = bytearray(shard.read_bytes())
        content[2000] ^= 1
        shard.write_bytes(content)


def test_checksum_differs_from_the_manifest(run, data, tmp_path):
    damage(data)
    code, said = run()
    assert code == EXIT_INPUT_ERROR and "sha256" in said and ".tar" in said
    assert json.loads((tmp_path / "run" / "verdict.json").read_text())["exit_code"] == EXIT_INPUT_ERROR


def test_all_ranks_end_with_2_where_one_meets_damage(data, tmp_path):
    damage(data)
    ranks = start_ranks(2, *TINY, f"data.path={data}", f"run_dir={tmp_path / 'run'}", "data.num_workers=1")
    said = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [EXIT_INPUT_ERROR] * 2, said
    assert any("sha256" in text for text in said) and not any("Traceback" in text for text in said), said


def test_another_vocabulary_than_the_models(run, tmp_path):
    code, said = run("model.vocab_size=50257")
    assert code == EXIT_INPUT_ERROR and "50257" in said and only_a_verdict(tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        "model.num_layers=1",
        "objective.cross_document_attention=true",
        "optimizer.lr=1e-2",
        "train.seed=9",
        "train.global_batch_size=4",
        "data.seq_len=16",
    ],
)
def test_a_run_dir_that_holds_another_run(run, tmp_path, change):
    assert run()[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != "verdict.json"}
    code, said = run(change)
    assert code == EXIT_INPUT_ERROR and change.split("=")[0] in said
    assert before == {p: p.read_bytes() for p in before}


def test_data_prepared_anew(run, data):
    assert run()[0] == 0
    manifest = json.loads((data / "manifest.json").read_text())
    train = manifest["splits"]["train"]
    dropped = train["shards"].pop()
    for key in ("samples", "documents", "tokens"):
        train[key] -= dropped[key]
    (data / "manifest.json").write_text(json.dumps(manifest))
    code, said = run("train.steps=3")
    assert code == EXIT_INPUT_ERROR and "prepared again" in said


def test_a_checkpoint_cut_short(run, tmp_path):
    assert run("train.checkpoint_every=1")[0] == 0
    newest = tmp_path / "run" / "checkpoints" / "step_00000002"
    file = next(newest.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    code, said = run(f"train.resume={newest}", f"run_dir={tmp_path / 'other'}")
    assert code == EXIT_INPUT_ERROR and "truncated" in said
    code, said = run("train.steps=3")  # auto takes the one before, and says so
    assert code == 0 and "skipped step_00000002" in said
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000001")
    for left in (tmp_path / "run" / "checkpoints").glob("*/*.safetensors"):
        left.write_bytes(b"")
    code, said = run("train.steps=4")
    assert code == EXIT_INPUT_ERROR and "checkpoints is complete" in said


def test_never_resume_over_a_run(run):
    assert run()[0] == 0
    code, said = run("train.resume=never")
    assert code == EXIT_INPUT_ERROR and "overwrite" in said


def test_what_may_change_on_resume(run, tmp_path):
    assert run()[0] == 0
    code, _ = run("train.steps=4", "train.micro_batch_size=8", "train.precision=bf16", "train.log_every=2")
    assert code == 0 and (tmp_path / "run" / "config.1.yaml").exists()
