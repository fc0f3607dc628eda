"""Word borders by a segmenter: found in what tokens spell, kept with them, and a table of words of similar use."""

import json
import re

import numpy as np
import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.shards.arrays import Malformed
from data_pipeline.shards.manifest import load_manifest
from data_pipeline.shards.text import TextReader
from data_pipeline.similar import SimilarConfig, make_similar, nearest
from data_pipeline.sources import text_corpus
from data_pipeline.stream.packing import Concatenation
from data_pipeline.stream.word_marks import Marked, unmarked
from data_pipeline.tokenizers import encoding, segmentation
from data_pipeline.tokenizers.segmentation import make_segmenter, word_starts
from data_pipeline.tokenizers.similar import SimilarWords, encode_similar
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.config import load_config
from pretraining.run.prepared import Prepared
from tests.helpers import prepare

WORDS = ("今日", "天气", "很好", "我们", "出门", "去", "公园", "。", "\n", "昨日", "明日")


def segmenter(text):
    """A segmenter of these words; other characters are words of their own."""
    return re.findall("|".join(map(re.escape, WORDS)) + "|.", text, re.DOTALL)


def test_a_token_begins_a_word_where_its_first_byte_does():
    spelled = [
        "今".encode(),
        "日天".encode(),
        "气".encode(),
        *(bytes([b]) for b in "很".encode()),
        "好去".encode(),
        b"",
    ]
    starts = word_starts(spelled, segmenter)
    #        今     日天    气      很, in three parts    好去    nothing
    assert starts.tolist() == [True, False, False, True, False, False, False, False]
    assert word_starts([b"\xe4", b"ab"], segmenter).tolist() == [True, True]  # no UTF-8
    assert word_starts([b"", "今日".encode()], segmenter).tolist() == [
        False,
        True,
    ]  # what spells nothing begins nothing


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Prepared with the segmenter above in the place of jieba."""
    for module in (text_corpus, encoding):
        monkeypatch.setattr(module, "make_segmenter", lambda name: segmenter)
    encoding._load_segmenter.cache_clear()
    rng = np.random.default_rng(1)
    with open(tmp_path / "text.jsonl", "w") as file:
        for _ in range(40):
            file.write(json.dumps({"text": "".join(rng.choice(WORDS, 60))}) + "\n")
    options = ("tokenizer.model_type=char", "tokenizer.vocab_size=400", "tokenizer.words=jieba", "num_workers=0")
    folder = tmp_path / "data"
    assert prepare(f"corpus.inputs=[{tmp_path / 'text.jsonl'}]", f"output={folder}", *options) == 0
    yield folder
    encoding._load_segmenter.cache_clear()


def test_borders_are_kept_with_the_tokens(data):
    manifest, tokenizer = load_manifest(data), Tokenizer.load(data / "tokenizer")
    assert manifest.tokenizer.words == "jieba"
    reader = TextReader(manifest, "train")
    for place in ((0, 0, 0), (1, 0, 1)):
        document = reader.read_document(*place)
        found = np.split(document.tokens, np.flatnonzero(document.words)[1:])
        assert [tokenizer.decode(word) for word in found] == segmenter(tokenizer.decode(document.tokens))
        segment = Concatenation(9, 9, (398,), (399,)).plan(np.array([len(document.tokens)])).segments(1)[0]
        marked = Marked(Concatenation(9, 9, (398,), (399,))).cut(document, segment)
        tokens, begins = unmarked(marked)
        assert np.array_equal(tokens, document.tokens[8:17]) and np.array_equal(begins, document.words[8:17])
    assert prepare("verify", f"output={data}") == 0


def test_data_without_borders_is_as_before(corpus):
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert sorted(manifest["tokenizer"]) == ["fingerprint", "total_size", "vocab_size"]
    document = TextReader(load_manifest(corpus), "train").read_document(0, 0, 0)
    with pytest.raises(InputError, match=r"objective\.words=segmented needs data that was prepared with tokenizer"):
        Marked(Concatenation(9, 9)).cut(document, Concatenation(9, 9).plan(np.array([20])).segments(0)[0])
    with pytest.raises(InputError, match="was prepared without word borders"):
        make_similar(SimilarConfig(str(corpus)))


def test_a_table_from_a_file(data, tmp_path):
    (tmp_path / "table.tsv").write_text("今日\t昨日\t公\t明日\t今日\n公园\t去\n去\t好\n")
    said = make_similar(SimilarConfig(str(data), table=str(tmp_path / "table.tsv")))
    assert said.startswith("2 words")
    tokenizer = Tokenizer.load(data / "tokenizer")
    found = tokenizer.similar.of(np.array(tokenizer.encode("今日"), np.int64))
    assert [tokenizer.decode(word) for word in found] == ["昨日", "明日"]
    assert tokenizer.similar.of(np.array(tokenizer.encode("公园"), np.int64)) is None
    assert load_manifest(data).tokenizer.similar == tokenizer.similar.sha256
    assert prepare("verify", f"output={data}") == 0
    (data / "tokenizer" / "similar.npz").write_bytes(encode_similar({(5,): [(6,)]}))
    assert prepare("verify", f"output={data}") == 2


def test_a_table_by_word_vectors_is_the_same_in_every_run(data):
    pytest.importorskip("gensim")
    config = SimilarConfig(str(data), min_count=1, vector_size=8)
    make_similar(config)
    first = load_manifest(data).tokenizer.similar
    make_similar(config)
    assert load_manifest(data).tokenizer.similar == first != ""


def test_nearest_leaves_out_the_word_itself():
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]], np.float32)
    words = [(1, 2), (3, 4), (5, 6), (7, 8)]
    assert nearest(words, vectors, 2)[(1, 2)] == [(3, 4), (5, 6)]
    assert nearest(words[:1], vectors[:1], 2) == {}


@pytest.mark.parametrize("table, total_size", [({(5,): [(6,)]}, 6), ({(5,): []}, 9)])
def test_a_broken_table_is_refused(table, total_size):
    with pytest.raises(Malformed):
        SimilarWords(encode_similar(table), total_size)


def test_jieba_joins_to_the_text():
    pytest.importorskip("jieba")
    segment, text = make_segmenter("jieba"), "今天天气很好，我们去公园。abc 12"
    assert "".join(segment(text)) == text and "公园" in list(segment(text))


def test_a_segmenter_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jieba", None)
    with pytest.raises(InputError, match=r"pip install 'pretraining\[zh\]'"):
        segmentation.make_segmenter("jieba")


def test_a_run_is_bound_to_its_table_of_similar_words(data, tmp_path):
    """Where its samples are made with one: another table would make others."""
    (tmp_path / "table.tsv").write_text("今日\t昨日\n")

    def prepared(*options):
        options = ("model=bert_debug", "objective=masked_lm", *options)
        return Prepared(load_config([f"data.path={data}", *options]))

    similar = ("objective.masking=whole_word", "objective.replacement=similar")
    without = prepared().fingerprint
    make_similar(SimilarConfig(str(data), table=str(tmp_path / "table.tsv")))
    assert prepared().fingerprint == without != prepared(*similar).fingerprint
    assert prepared(*similar).bound == prepared(*similar).fingerprint
    (data / "tokenizer" / "similar.npz").write_bytes(encode_similar({(5,): [(6,)]}))
    with pytest.raises(InputError, match=r"similar\.npz is not the one that .*manifest\.json names"):
        prepared()
