"""mBART's samples: which token ends a text and begins the decoder, by hand; which data they are refused for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Segment
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.build import make_stream, read_data
from pretraining.config import load_config
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.samples import first_samples
from pretraining.objectives.sequence.denoising import Denoising, DenoisingConfig
from pretraining.objectives.sequence.language_blocks import LanguageBlocks
from pretraining.objectives.sequence.sentence_blocks import SentenceBlocks
from tests.helpers import TINY, prepare, train_alone

WORDS = {"en_XX": "the line {} of the text. ", "de_DE": "die Zeile {} des Textes. "}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    trained = Tokenizer.train(["the quick brown fox jumps over the lazy dog\n" * 20], "bpe", 300)
    return trained.with_languages(["en_XX", "de_DE"])


def make(tokenizer: Tokenizer, **keys: Any) -> Denoising:
    config = DenoisingConfig("denoising", language_tokens=True, **keys)
    return Denoising(config, SampleSpec(seq_len=32, tokenizer=tokenizer))


def test_a_sample_is_the_one_of_the_authors_code(tokenizer):
    """fairseq: <s> and the language around a block (tasks/multilingual_denoising.py, PrependTokenDataset and
    AppendTokenDataset), </s> after each sentence, the last token moved to the decoder's beginning (data/data_utils.py,
    collate_tokens with move_eos_to_beginning and no eos_idx)."""
    objective, document = make(tokenizer, noise="none"), TokenizedDocument(np.arange(10, 16), np.array([0, 4]))
    bos, eos, language = tokenizer.bos, tokenizer.eos, tokenizer.languages["de_DE"]
    segment = objective.packing_of("de_DE", "text").cut(document, Segment(0, 0, 6))
    samples = [objective.corrupt([segment], np.random.default_rng(seed)) for seed in range(20)]
    for sample in samples:
        assert sample["labels"].tolist() == [bos, 10, 11, 12, 13, eos, 14, 15, eos, language]
        assert sample["decoder_inputs"].tolist() == [language, bos, 10, 11, 12, 13, eos, 14, 15, eos]
    assert {tuple(sample["inputs"].tolist()) for sample in samples} == {
        (bos, 10, 11, 12, 13, eos, 14, 15, eos, language),
        (bos, 14, 15, eos, 10, 11, 12, 13, eos, language),
    }
    assert objective.describe(samples[0]).endswith("[EOS][de_DE]") and objective.target_bytes(samples) > 0
    assert {language, tokenizer.languages["en_XX"]} <= set(objective.used_ids().tolist())
    assert tokenizer.sentinels[0] not in objective.used_ids()


def test_ends_of_sentences_can_be_masked_but_not_the_language(tokenizer):
    objective = make(tokenizer, rate=0.9, mean_span_length=1.0, permuted_sentences=0.0, whole_words=True)
    tokens = np.array(tokenizer.encode("the fox jumps"))
    segment = objective.packing_of("en_XX", "text").cut(
        TokenizedDocument(tokens, np.array([0])), Segment(0, 0, len(tokens))
    )
    inputs = [objective.corrupt([segment], np.random.default_rng(seed))["inputs"] for seed in range(50)]
    assert all((i[0], i[-1]) == (tokenizer.bos, tokenizer.languages["en_XX"]) and len(i) <= 32 for i in inputs)
    assert {tokenizer.eos in i for i in inputs} == {True, False}


def test_blocks_fit_with_the_ends_of_their_sentences():
    rng, lengths = np.random.default_rng(0), np.array([50, 7, 0, 30])
    starts = np.unique([0, 50, 57, *rng.choice(87, 20)])
    ends = np.cumsum(lengths)
    blocks, length = LanguageBlocks(9, language=500, eos=2), 9
    plan, read = blocks.plan(lengths, lambda: starts), []
    segments = [s for i in range(plan.num_sequences) for s in plan.segments(i)]
    for number, s in enumerate(segments):
        first = int(ends[s.document] - lengths[s.document])
        own = starts[(starts >= first) & (starts < ends[s.document])] - first
        found = blocks.cut(TokenizedDocument(100 + first + np.arange(lengths[s.document]), own), s)
        assert len(found.tokens) <= length and found.tokens[-1] == 2 and found.language == 500
        assert (found.tokens[found.sentences[1:] - 1] == 2).all()
        assert (found.tokens == 2).sum() == len(found.sentences)
        read += found.tokens[found.tokens != 2].tolist()
        if number + 1 < len(segments) and segments[number + 1].document == s.document:  # the next sentence did not fit
            after = next((int(o) for o in own if o > s.stop), int(lengths[s.document]))
            assert len(found.tokens) + after - s.stop + 1 > length
    assert read == list(range(100, 187))
    assert SentenceBlocks(9).plan(lengths, lambda: starts).num_sequences <= plan.num_sequences


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROOT/all with tokens of two languages, ROOT/en_XX and ROOT/de_DE with its tokenizer."""
    root = tmp_path_factory.mktemp("languages")
    common = ("valid_fraction=0.2", "num_workers=1", "block_tokens=512", "min_shards=2")
    for name, words in WORDS.items():
        texts = ["".join(words.format(i * n) for i in range(4)) for n in range(30)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    inputs = f"corpus.inputs=[{root}/en_XX.jsonl,{root}/de_DE.jsonl]"
    options = ("tokenizer.vocab_size=290", "tokenizer.languages=[en_XX,de_DE]")
    assert prepare(inputs, f"output={root}/all", *options, *common) == 0
    for name in WORDS:
        ready = f"tokenizer.path={root}/all/tokenizer"
        assert prepare(f"corpus.inputs=[{root}/{name}.jsonl]", f"output={root}/{name}", ready, *common) == 0
    return root


def run_of(root: Path, *more: str, sources: str = "en_XX de_DE") -> list[str]:
    folders = ", ".join(f"{name}: '{root / name}'" for name in sources.split())
    mixed = ("data=mixture", f"data.sources={{{folders}}}") if sources else (f"data.path={root}/all",)
    return [*TINY, "model=t5_debug", "objective=denoising", "objective.language_tokens=true", *mixed, *more]


def test_every_sample_of_a_mixture_says_its_corpus(languages):
    config = load_config(run_of(languages))
    data = read_data(config)
    names = {i: name for name, i in data.prepared.tokenizer.languages.items()}
    for split in ("train", "valid"):
        samples = first_samples(make_stream(config, data.prepared, data.objective, split), data.objective, 12)
        found = [names[int(sample["labels"][-1])] for sample in samples]
        assert set(found) == set(WORDS)
        for name, sample in zip(found, samples, strict=True):
            assert WORDS[name].split()[0] in data.objective.describe(sample).splitlines()[1]
            assert sample["inputs"][-1] == sample["labels"][-1] == sample["decoder_inputs"][0]


def test_other_data_is_refused_before_anything_starts(languages):
    with pytest.raises(InputError, match="language_tokens=true needs data=mixture"):
        read_data(load_config(run_of(languages, sources="")))
    (languages / "fr_XX").symlink_to(languages / "de_DE")
    with pytest.raises(InputError, match=r"data.sources.fr_XX: .*no token of a language fr_XX; it has en_XX, de_DE"):
        read_data(load_config(run_of(languages, sources="en_XX fr_XX")))


def test_a_tokenizers_languages_are_kept_and_spelled_as_mbarts(languages, tmp_path, capsys):
    ready = Tokenizer.load(languages / "de_DE" / "tokenizer")
    assert ready.languages == {"en_XX": ready.total_size - 2, "de_DE": ready.total_size - 1}
    more = ready.with_languages(["de_DE", "fr_XX"])
    more.save(tmp_path / "more")
    assert Tokenizer.load(tmp_path / "more").languages == {**ready.languages, "fr_XX": ready.total_size}
    assert more.fingerprint != ready.fingerprint and ready.with_languages([]) is ready
    common = (f"corpus.inputs=[{languages}/en_XX.jsonl]", f"output={tmp_path}/no")
    assert prepare(*common, "tokenizer.languages=[en]") == 2
    assert "'en' is not spelled as in mBART's or NLLB's vocabulary: en_XX" in capsys.readouterr().err


def test_an_export_frames_and_begins_as_the_samples_do(languages, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    from transformers.models.mbart.modeling_mbart import shift_tokens_right

    from pretraining.hub import export as hub

    monkeypatch.setattr(hub, "model_card", lambda facts, run: "")  # which takes longer than all the rest
    shape = ("model=huggingface", "model.architecture=MBartForConditionalGeneration", "model.intermediate_size=32")
    run = run_of(languages, *shape, "train.steps=2", f"run_dir={tmp_path}/run", "objective.noise=none")
    train_alone(*run)
    assert hub.export(hub.ExportConfig(f"{tmp_path}/run", f"{tmp_path}/out"))["max_abs_difference"] < 1e-5
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    data = read_data(load_config(run))
    names = {i: name for name, i in data.prepared.tokenizer.languages.items()}
    (sample,) = first_samples(data.training, data.objective, 1)
    sentences = data.prepared.tokenizer.decode(sample["labels"].tolist())
    language = names[int(sample["labels"][-1])]
    read = tokenizer(sentences, language, return_tensors="pt")["input_ids"]
    text = [i for i in sample["labels"].tolist()[:-2] if i != data.prepared.tokenizer.eos]  # no </s> within it
    end = tokenizer.convert_tokens_to_ids(["</s>", language])
    assert read[0].tolist() == [*text, *end]
    assert shift_tokens_right(read, tokenizer.pad_token_id)[0].tolist() == [end[1], *text, end[0]]
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        model.generate(read, max_new_tokens=3)
    assert model.generate(read, max_new_tokens=3, decoder_start_token_id=end[1])[0, 0] == end[1]
