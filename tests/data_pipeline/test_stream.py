from collections import Counter

import numpy as np
import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.shards.manifest import load_manifest
from data_pipeline.shards.text import TextReader, TokenizedDocument
from data_pipeline.stream.packing import Concatenation, Segment, Single
from data_pipeline.stream.sentence_packing import PairPart, SentencePairs, SentenceSpans
from data_pipeline.stream.stream import Position, Stream
from pretraining.objectives.sequence.budget_packing import BudgetPacking

PACKING = Concatenation(33, 32, before=(1,), after=(2,))


@pytest.fixture(scope="module")
def reader(corpus):
    return TextReader(load_manifest(corpus), "train")


def stream(reader, seed=1, **options):
    return Stream(reader, PACKING, seed, window_blocks=4, window_shards=2, **options)


def epoch_length(s, epoch=0):
    return sum(s.window(epoch, w).plan.num_sequences for w in range(s.windows_per_epoch))


def test_an_epoch_holds_every_document_once(reader):
    s = stream(reader)
    documents = Counter()
    for w in range(s.windows_per_epoch):
        window = s.window(0, w)
        documents.update((window.blocks[b], int(d)) for b, d in window.documents)
    expected = sum(len(reader.document_lengths(i, b)) for i, n in enumerate(reader.blocks_per_shard) for b in range(n))
    assert len(documents) == expected and set(documents.values()) == {1}


def test_walking_and_seeking_agree(reader):
    """The sequence with number n is the same whether one walks to it or jumps."""
    s, position, walked = stream(reader), Position(), []
    length = epoch_length(s)
    for sequence, after in s.sequences(position):
        walked.append((position, sequence))
        position = after
        if position.number == length + 20:
            break
    assert walked[-1][0].epoch == 1
    for number in (0, 1, 17, length - 1, length, length + 19):
        there = stream(reader).advance(Position(), number)
        assert there.number == number
        for a, b in zip(stream(reader).sequence(there), walked[number][1], strict=True):
            assert np.array_equal(a, b)
        assert s.from_json(s.to_json(there)) == there


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"epoch": 0},
        {"epoch": 0, "window": 0, "sequence": 0, "number": "7"},
        {"epoch": 0, "window": 0, "sequence": 0, "number": 0, "format": "2"},
        {"source": {"epoch": 0}, "number": 0},
    ],
)
def test_a_state_that_is_no_position_is_refused(reader, values):
    with pytest.raises(InputError, match="not a position"):
        stream(reader).from_json(values)


def test_epochs_and_seeds_differ(reader):
    def first(s, epoch):
        return np.concatenate(s.sequence(Position(epoch=epoch))).tolist()

    one = first(stream(reader), 0)
    assert first(stream(reader), 0) == one
    assert first(stream(reader), 1) != one
    assert first(stream(reader, seed=2), 0) != one


def test_a_window_opens_a_bounded_number_of_shards(reader):
    s = stream(reader)
    assert len(reader.blocks_per_shard) > 4
    assert all(len({shard for shard, _ in s.window(0, w).blocks}) <= 4 for w in range(s.windows_per_epoch))


@pytest.mark.parametrize("format_", [{}, {"format": 1}, {"format": 99}])
def test_a_position_of_another_version_is_refused(reader, format_):
    """It would mean another sequence."""
    with pytest.raises(InputError, match=r"of format \d+, this version has format 2 .* cannot go on with the run"):
        stream(reader).from_json({"epoch": 0, "window": 0, "sequence": 5, "number": 5, **format_})


class Blocks:
    """A corpus in memory, of one shard: blocks of documents of these lengths. A document's tokens are its number."""

    name = "a corpus, split train,"

    def __init__(self, *blocks):
        self.blocks, self.kept = [np.array(block) for block in blocks], 0
        self.first = np.cumsum([0, *(len(block) for block in blocks)])

    @property
    def blocks_per_shard(self):
        return [len(self.blocks)]

    def document_lengths(self, shard, block):
        return self.blocks[block]

    def sentence_starts(self, shard, block):
        ends = np.cumsum(self.blocks[block])
        return np.concatenate([np.arange(end - n, end, 10) for end, n in zip(ends, self.blocks[block], strict=True)])

    def read_document(self, shard, block, document):
        length = self.blocks[block][document]
        return TokenizedDocument(np.full(length, self.first[block] + document), np.arange(0, length, 10))

    def keep_blocks(self, count):
        self.kept = count


ROOM = np.arange(40)
PACKINGS = {
    "concatenation": Concatenation(33, 32),
    "sentences": SentenceSpans(32),
    "pairs of sentences": SentencePairs(32),
    "budget": BudgetPacking(ROOM, ROOM, 32, 32),
}
LONG = Blocks(*([[3200, 1600], [6400], [200] * 20] * 8))  # some 100 cuts a document
BATCH = 24


def pairs_of_one_document(s, count):
    """-> (pairs of sequences that begin with one and the same document, of all that stand in a batch together; the
    same share in the whole windows), over the first `count` batches."""
    documents, together, window, position = [], [], Counter(), Position()
    for _ in range(count):
        documents = []
        for _ in range(BATCH):
            documents.append(int(tokens_of(s.sequence(position)[0])[0]))
            position = s.advance(position, 1)
        window.update(documents)
        together.append(pairs(Counter(documents)))
    return np.mean(together), pairs(window)


def tokens_of(segment):
    return segment.tokens if isinstance(segment, TokenizedDocument | PairPart) else segment


def pairs(counted):
    total = counted.total()
    return sum(n * (n - 1) for n in counted.values()) / (total * (total - 1))


def unmixed(window):
    return window._replace(order=np.arange(len(window.order)))


@pytest.mark.parametrize("name", PACKINGS)
def test_a_batch_is_made_of_strangers(name):
    """Two sequences of a batch are of one document as rarely as two of their window."""
    s = Stream(LONG, PACKINGS[name], 1, window_blocks=24)
    batches = len(s.window(0, 0).order) // BATCH
    found, expected = pairs_of_one_document(s, batches)
    assert batches > 80 and found == pytest.approx(expected, rel=0.15)
    s = Stream(LONG, PACKINGS[name], 1, window_blocks=24)
    plain = s.window
    s.window = lambda epoch, window: unmixed(plain(epoch, window))  # as it was: in the order of packing
    assert pairs_of_one_document(s, batches)[0] > 4 * expected


@pytest.mark.parametrize("name", PACKINGS)
def test_the_order_is_a_permutation_of_its_own_for_every_seed_epoch_and_window(name):
    s = Stream(LONG, PACKINGS[name], 1, window_blocks=8)
    orders = [s.window(epoch, window).order for epoch in (0, 1) for window in (0, 1)]
    orders.append(Stream(LONG, PACKINGS[name], 2, window_blocks=8).window(0, 0).order)
    assert all(np.array_equal(np.sort(order), np.arange(len(order))) for order in orders)
    assert len({tuple(order[:20]) for order in orders}) == len(orders)


def test_windows_of_equally_many_sequences_have_orders_of_their_own():
    """Also where nothing else tells them apart: a permutation of another length would be another one by itself."""
    equal = Blocks(*([[64] * 40] * 8))
    made = {seed: Stream(equal, Concatenation(33, 32), seed, window_blocks=2) for seed in (1, 2)}
    places = [(seed, epoch, window) for seed in made for epoch in range(3) for window in range(4)]
    orders = {(s, e, w): tuple(made[s].window(e, w).order.tolist()) for s, e, w in places}
    assert made[1].windows_per_epoch == 4 and {len(order) for order in orders.values()} == {160}
    assert len(set(orders.values())) == len(places)
    again = Stream(equal, Concatenation(33, 32), 2, window_blocks=2)
    assert tuple(again.window(1, 3).order.tolist()) == orders[2, 1, 3]


def test_a_sequence_comes_with_its_partner_of_the_packing():
    s = Stream(Blocks([1] * 40), Single(partner=True), 1)
    for number in range(40):
        own, partner = (int(d.tokens[0]) for d in s.sequence(Position(sequence=number)))
        places = [int(document) for _, document in s.window(0, 0).documents]
        assert (places.index(partner) - places.index(own)) % 40 == 20


@pytest.mark.parametrize("blocks, width, windows", [(24, 24, 1), (24, 10, 2), (24, 5, 4), (7, 64, 1), (24, 1, 24)])
def test_blocks_are_dealt_to_windows_evenly(blocks, width, windows):
    """No window is left with a few blocks at the end of an epoch, where a batch would be of few documents."""
    s = Stream(Blocks(*([[100]] * blocks)), PACKING, 1, window_blocks=width)
    sizes = [len(s.window(0, w).blocks) for w in range(s.windows_per_epoch)]
    assert len(sizes) == windows and sum(sizes) == blocks and max(sizes) - min(sizes) <= 1
    assert s.reader.kept == max(sizes)


@pytest.mark.parametrize("least", [0, 30, 100, 10_000])
def test_a_window_is_as_wide_as_its_sequences_must_be_many(least):
    """100 tokens are four sequences."""
    s = Stream(Blocks(*([[98]] * 64)), PACKING, 1, window_blocks=4, least_sequences=least)
    found = [len(s.window(0, w).order) for w in range(s.windows_per_epoch)]
    assert min(found) >= min(least, 4 * 50)
    assert max(found) < 2 * max(4 * 4, least)


def test_a_window_without_a_sequence_is_passed_over():
    """Documents of one token are no sequence here."""
    s = Stream(Blocks([1], [50], [1, 1], [1], [20], [1]), PACKINGS["budget"], 3, window_blocks=1)
    assert sorted(len(s.window(0, w).order) for w in range(6)) == [0, 0, 0, 0, 1, 2]
    position, walked = Position(), []
    for _ in range(10):
        walked.append(int(s.sequence(position)[0][0]))
        position = s.advance(position, 1)
    assert Counter(walked[:3]) == Counter(walked[3:6]) == {1: 2, 5: 1}
    for number in range(10):
        there = s.from_json(s.to_json(s.advance(Position(), number)))
        assert int(s.sequence(there)[0][0]) == walked[number] and there.number == number


def test_a_split_without_a_sequence_is_refused_by_name():
    s = Stream(Blocks([1], [1, 1], [1]), PACKINGS["budget"], 3, window_blocks=1)
    with pytest.raises(InputError, match=r"a corpus, split train: its documents are too short"):
        s.advance(s.start(), 0)


def test_sentences_follow_their_documents_into_the_order_of_the_window(reader):
    """Every span begins with a sentence of its document, and all of them together are the window's text."""
    s = Stream(reader, SentenceSpans(32), 1, window_blocks=4)
    window = s.window(0, 0)
    for number in range(0, window.plan.num_sequences, 7):
        (segment,) = window.plan.segments(number)
        block, index = window.documents[segment.document]
        document = reader.read_document(*window.blocks[block], int(index))
        assert segment.start in document.sentences
        assert segment.stop in document.sentences or segment.stop == len(document.tokens)
    spans = window.plan.spans
    assert (spans[:, 2] - spans[:, 1]).sum() == sum(reader.document_lengths(*b).sum() for b in window.blocks)


def test_origins_name_the_documents_of_a_sequence(corpus):
    """Read by the names alone, they are what the sequence holds."""
    manifest = load_manifest(corpus)
    stream = Stream(TextReader(manifest, "train"), Concatenation(length=33, stride=32), seed=1, window_blocks=4)
    reader, names = TextReader(manifest, "train"), [shard.name for shard in manifest.splits["train"].shards]
    for number in (0, 1, 700, 5000):
        state = stream.advance(stream.start(), number)
        found = [
            stream.packing.cut(
                reader.read_document(names.index(o.shard), o.block, o.document), Segment(0, o.start, o.stop)
            )
            for o in stream.origins(state)
        ]
        expected = stream.sequence(state)
        assert len(found) == len(expected) > 0
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
