from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import prepare
from data_pipeline.shards.manifest import check_files, load_manifest
from data_pipeline.shards.text import TextReader
from data_pipeline.tokenizers.tokenizer import Tokenizer

SMALL = ["tokenizer.vocab_size=400", "valid_fraction=0.1", "block_tokens=2000", "shard_bytes=30000"]

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "中文", "naïve\t", "\n", ".\n"]
ROOT = Path(prepare.__file__).parents[1]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 text files of a few KB and one of lines with JSON: words in a different mixture in each."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 600)) + f" {i}.\n" for i in range(90)]
    for i, text in enumerate(texts[:60]):
        (folder / f"{i:02d}.txt").write_text(text)
    (folder / "more.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts[60:]))
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pretrain-data", *arguments])
    return prepare.main()


def files(root: Path) -> dict[str, bytes]:
    """Everything that must not depend on how the output came about; plan.json holds the inputs' times, sums.jsonl is
    there until the manifest is."""
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and p.name not in (".lock", "plan.json", "sums.jsonl")
    }


@pytest.fixture(scope="module")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("prepared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, f"corpus.inputs=[{corpus}]", f"output={output}", "num_workers=1", *SMALL) == 0
    return output


def decoded(root: Path, split: str) -> list[str]:
    tokenizer, reader = Tokenizer.load(root / "tokenizer"), TextReader(load_manifest(root), split)
    found = []
    for shard in range(len(reader.blocks_per_shard)):
        index, at = reader.index(shard), 0
        for block, count in enumerate(index.documents):
            tokens, _, _ = reader.read_block(shard, block)
            ends = np.cumsum(index.lengths[at : at + count])
            found += [tokenizer.decode(part) for part in np.split(tokens, ends[:-1])]
            at += count
    return found


def test_every_document_comes_back_byte_for_byte_in_one_split(corpus: Path, prepared: Path) -> None:
    manifest = load_manifest(prepared)
    check_files(manifest)
    originals = [p.read_bytes().decode() for p in sorted(corpus.glob("*.txt"))]
    originals += [json.loads(line)["text"] for line in (corpus / "more.jsonl").read_text().splitlines()]
    train, valid = decoded(prepared, "train"), decoded(prepared, "valid")
    assert sorted(train + valid) == sorted(originals)
    assert train == [t for t in originals if t in set(train)], "the order of the corpus stays"
    assert 1 <= len(valid) <= 25 and len(manifest.splits["train"].shards) > 2
    assert manifest.tokenizer.fingerprint == Tokenizer.load(prepared / "tokenizer").fingerprint
    assert not [p for p in prepared.rglob("*.tmp")]


def test_workers_do_not_change_what_is_written(
    corpus: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipeline.tokenizers.encoding._CHUNK_CHARACTERS", 5000)
    assert run(monkeypatch, f"corpus.inputs=[{corpus}]", f"output={tmp_path / 'o'}", "num_workers=2", *SMALL) == 0
    assert files(tmp_path / "o") == files(prepared)


def test_finished_output_is_left_alone(
    corpus: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in prepared.rglob("*")}
    assert run(monkeypatch, f"corpus.inputs=[{corpus}]", f"output={prepared}", "num_workers=3", *SMALL) == 0
    assert "already complete" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in prepared.rglob("*")} == before


@pytest.mark.parametrize("change", ["seed=2", "tokenizer.vocab_size=401", "valid_fraction=0.2", "inputs"])
def test_output_of_other_settings_or_inputs_is_refused(
    corpus: Path,
    prepared: Path,
    change: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inputs = f"corpus.inputs=[{corpus}/*.txt]" if change == "inputs" else f"corpus.inputs=[{corpus}]"
    changes = [] if change == "inputs" else [change]
    before = files(prepared)
    assert run(monkeypatch, inputs, f"output={prepared}", "num_workers=1", *SMALL, *changes) == 2
    message = capsys.readouterr().err
    assert ("other data" if change == "inputs" else change.split("=")[0]) in message
    assert files(prepared) == before


def test_missing_shard_of_a_finished_output_is_written_again(
    corpus: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [f"corpus.inputs=[{corpus}]", f"output={tmp_path / 'o'}", "num_workers=1", *SMALL]
    assert run(monkeypatch, *arguments) == 0
    (tmp_path / "o/train/shard-000001.tar").unlink()
    assert run(monkeypatch, *arguments) == 0
    assert files(tmp_path / "o") == files(prepared)


def start(source: Path, output: Path, num_workers: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "data_pipeline.prepare",
        f"corpus.inputs=[{source}]",
        f"output={output}",
        f"num_workers={num_workers}",
        "tokenizer.vocab_size=400",
        "block_tokens=20000",
        "shard_bytes=300000",
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A corpus that takes a second or two, and its uninterrupted output."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(1)
    texts = (" ".join(rng.choice(WORDS, 800)) + str(i) for i in range(1000))
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    assert start(folder / "in.jsonl", folder / "out", 1).wait() == 0
    return folder / "in.jsonl", folder / "out"


@pytest.mark.parametrize(
    ("seen", "num_workers"), [("plan.json", 1), ("train/shard-000000.tar", 2), ("train/shard-000003.tar", 1)]
)
def test_killed_anywhere_the_same_command_gives_the_same_bytes(
    large: tuple[Path, Path], tmp_path: Path, seen: str, num_workers: int
) -> None:
    source, whole = large
    output = tmp_path / "o"
    process = start(source, output, num_workers)
    deadline = time.monotonic() + 60
    while not (output / seen).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    written = {path for path in files(output) if not any(p.startswith(".") for p in Path(path).parts)}
    assert "manifest.json" not in written
    assert all((whole / path).read_bytes() == (output / path).read_bytes() for path in written), "half-written"
    assert start(source, output, num_workers).wait() == 0
    assert files(output) == files(whole)


def test_a_run_beside_another_is_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_pipeline.shards.continuation import locked

    with locked(str(tmp_path / "o")):
        assert run(monkeypatch, f"corpus.inputs=[{corpus}]", f"output={tmp_path / 'o'}", *SMALL) == 2
    assert "being written by another process" in capsys.readouterr().err


def test_character_tokenizer_covers_the_corpus_or_names_what_it_does_not(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"corpus.inputs=[{corpus}]", "tokenizer.model_type=char", "num_workers=1"]
    assert run(monkeypatch, *arguments, f"output={tmp_path / 'a'}", "tokenizer.vocab_size=500") == 0
    assert len(decoded(tmp_path / "a", "train")) > 80
    assert run(monkeypatch, *arguments, f"output={tmp_path / 'b'}", "tokenizer.vocab_size=30") == 2
    assert "uncovered: '" in capsys.readouterr().err


def test_ready_tokenizer_and_its_warning(
    corpus: Path,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import sentencepiece

    arguments = [f"corpus.inputs=[{corpus}]", "num_workers=1", *SMALL[1:]]  # no vocab_size
    ready = prepared / "tokenizer/tokenizer.model"
    assert run(monkeypatch, *arguments, f"output={tmp_path / 'a'}", f"tokenizer.path={ready}") == 0
    assert "warning" not in capsys.readouterr().out
    assert files(tmp_path / "a") == files(prepared)
    lines = (corpus / "00.txt").read_text().splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "m"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    assert run(monkeypatch, *arguments, f"output={tmp_path / 'b'}", f"tokenizer.path={tmp_path / 'm.model'}") == 0
    assert "does not reproduce every text" in capsys.readouterr().out


def test_repeated_document_of_smallest_hash_is_in_validation_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"body": f"sentence number {i % 5}. And more words for it.\n"}) for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert (
        run(
            monkeypatch,
            f"corpus.inputs=[{tmp_path}/a.jsonl]",
            f"output={tmp_path / 'o'}",
            "num_workers=0",
            "corpus.text_field=body",
            "tokenizer.vocab_size=300",
            "valid_fraction=0",
        )
        == 0
    )
    train, valid = decoded(tmp_path / "o", "train"), decoded(tmp_path / "o", "valid")
    assert (len(train), len(valid), len(set(valid))) == (32, 8, 1)
    assert not set(train) & set(valid)


def wordpiece(folder: Path) -> Path:
    """A tokenizer.json as BERT's: it strips spaces and control characters."""
    from tokenizers import Tokenizer as Fast
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    fast = Fast(WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    fast.normalizer, fast.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    fast.add_special_tokens(pieces[:5])
    fast.save(str(folder / "wordpiece.json"))
    return folder / "wordpiece.json"


def test_documents_without_tokens_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"text": t}) for t in ["a b c", " ", "\x01", "\n", *(f"d e {'f' * i}" for i in range(9))]]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    arguments = [f"corpus.inputs=[{tmp_path}/a.jsonl]", f"output={tmp_path / 'o'}", "num_workers=0"]
    assert run(monkeypatch, *arguments, f"tokenizer.path={wordpiece(tmp_path)}") == 0
    said = capsys.readouterr().out
    assert "left out: 1 documents of which the tokenizer makes no token, 2 documents without text" in said
    assert "only 10 documents" in said
    manifest = load_manifest(tmp_path / "o")
    assert sum(split.documents for split in manifest.splits.values()) == 10


def test_output_within_the_input_is_the_same_both_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(f"some words of text number {i}\n" * 20)
    (tmp_path / "out").mkdir()
    arguments = [f"corpus.inputs=['{tmp_path}']", f"output={tmp_path / 'out'}", "num_workers=0", *SMALL]
    assert run(monkeypatch, *arguments, "tokenizer.vocab_size=300") == 0
    (tmp_path / "out" / "notes.txt").write_text("somebody's own")
    assert run(monkeypatch, *arguments, "tokenizer.vocab_size=300") == 0
    assert "already complete" in capsys.readouterr().out


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """name -> (overrides, what the message must hold)."""
    (folder / "empty").mkdir()
    (folder / "blank.txt").write_text("")
    (folder / "blank.jsonl").write_text('{"text": " "}\n{"text": "\\u0001"}\n')
    (folder / "one.txt").write_text("a few words\n" * 10)
    (folder / "short.txt").write_text("ab\n")
    (folder / "equal.jsonl").write_text('{"text": "a b"}\n' * 50)
    (folder / "bad_alone.jsonl").write_text("{\n")
    (folder / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (folder / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (folder / "two.jsonl").write_text('{"text": "a b"}\n{"text": "b c"}\n')
    return {
        "no keys": ([], ["corpus.inputs", "output"]),
        "typo": (["corpus.input=[x]", "+tokenizer.vocab=3"], ["corpus.inputs", "tokenizer.vocab_size"]),
        "type": (
            ["corpus.inputs=[x]", "output=o", "tokenizer.model_type=wordpiece", "valid_fraction=1.5"],
            ["tokenizer.model_type", "valid_fraction"],
        ),
        "no path": ([f"corpus.inputs=[{folder}/nowhere.txt]"], ["nowhere.txt does not exist"]),
        "no match": ([f"corpus.inputs=['{folder}/*.md']"], ["matches no files"]),
        "empty folder": ([f"corpus.inputs=[{folder}/empty]"], ["has no files ending in"]),
        "blank": (
            [f"corpus.inputs=[{folder}/blank.jsonl]", f"tokenizer.path={wordpiece(folder)}"],
            ["corpus is empty", "1 documents without text", "1 documents of which the tokenizer makes no token"],
        ),
        "empty corpus": ([f"corpus.inputs=[{folder}/blank.txt]"], ["corpus is empty"]),
        "one document": (
            [f"corpus.inputs=[{folder}/one.txt]"],
            ["1 document", "leaves none to train on", "corpus.max_document_bytes="],
        ),
        "short document": ([f"corpus.inputs=[{folder}/short.txt]"], ["leaves none to train on"]),
        "equal documents": (
            [f"corpus.inputs=[{folder}/equal.jsonl]"],
            ["50 documents, and all go to validation", "equal documents are never split", "documents that differ"],
        ),
        "bad lines alone": (
            [f"corpus.inputs=[{folder}/bad_alone.jsonl]", "corpus.max_bad_lines=1"],
            ["bad_alone.jsonl contains no text (1 unreadable line skipped)"],
        ),
        "name of another encoding": (
            [f"corpus.inputs=[{folder}/donn\udce9es]"],
            ["corpus.inputs: ", "donn\\xe9es is not UTF-8: rename it"],
        ),
        "half of a pair": ([f"corpus.inputs=[{folder}/a\ud800]"], ["corpus.inputs: ", "a\\ud800 is not UTF-8"]),
        "jsonl": ([f"corpus.inputs=[{folder}/bad.jsonl]"], ["bad.jsonl, line 2: not JSON"]),
        "latin": ([f"corpus.inputs=[{folder}/latin.txt]"], ["latin.txt", "byte 2"]),
        "vocabulary": (
            [f"corpus.inputs=[{folder}/two.jsonl]", "tokenizer.vocab_size=9000"],
            ["9000", "at most"],
        ),
        "tokenizer": ([f"corpus.inputs=[{folder}/two.jsonl]", "tokenizer.path=none.model"], ["none.model"]),
        "foreign output": (
            [f"corpus.inputs=[{folder}/two.jsonl]", f"output={folder}"],
            ["contains other files"],
        ),
        "file as output": (
            [f"corpus.inputs=[{folder}/two.jsonl]", f"output={folder}/one.txt"],
            ["is a file"],
        ),
    }


def test_bad_input_ends_with_2_and_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name, (overrides, expected) in bad_inputs(tmp_path / "in").items():
        given = overrides if name == "no keys" else [f"output={tmp_path / name.replace(' ', '')}", *overrides]
        assert run(monkeypatch, *given) == 2, name
        message = capsys.readouterr().err
        assert message.startswith("error:") and "Traceback" not in message, name
        assert [e for e in expected if e not in message] == [], f"{name}: {message}"
        assert name != "short document" or "max_document_bytes" not in message  # 16 is the least, and cuts nothing
        assert name != "name of another encoding" or message.count("\n") == 1
        assert not list(tmp_path.rglob("manifest.json")) and not list(tmp_path.rglob("*.tar")), name


def test_help_and_faults_import_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['pretrain-data', '--help']\n"
        "from data_pipeline.prepare import main\n"
        "assert main() == 0\n"
        "heavy = {'torch', 'sentencepiece', 'tokenizers', 'webdataset', 'pretraining'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    assert "pretrain-data corpus.inputs=" in shown.stdout and "tokenizer.vocab_size=8192 (" in shown.stdout


@pytest.mark.parametrize("documents", [5, 60])
def test_small_data_has_shards_for_several_workers(documents: int, tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "in").mkdir()
    for path in sorted(corpus.glob("*.txt"))[:documents]:
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    arguments = [f"corpus.inputs=['{tmp_path}/in']", f"output={tmp_path / 'o'}", "tokenizer.vocab_size=300"]
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, *arguments, "num_workers=0", "valid_fraction=0.2") == 0
    for split in load_manifest(tmp_path / "o").splits.values():
        assert len(split.shards) == min(8, split.documents)
        counts = [shard.documents for shard in split.shards]
        assert max(counts) - min(counts) <= 1


def test_the_lines_of_users_md_read_every_document(prepared: Path) -> None:
    """By webdataset and torch alone, with workers."""
    text = (ROOT / "docs/users.md").read_text()
    lines = next(code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "webdataset" in code)
    code = lines.replace("DIR/", f"{prepared}/").replace("print(len(block), block[0][:8])", "print(len(block))")
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    train = load_manifest(prepared).splits["train"]
    assert sum(map(int, found.stdout.split())) == train.documents and len(found.stdout.split()) == train.samples
