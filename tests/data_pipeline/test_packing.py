from types import SimpleNamespace

import numpy as np
import pytest

from data_pipeline.stream.packing import Concatenation, Pieces, Segment


def test_worked_example():
    """Documents of 3 and 4 tokens, framed 5 and 6, cut every 4 tokens with one shared token."""
    plan = Concatenation(5, 4, before=(1,), after=(2,)).plan(np.array([3, 4]))
    assert plan.num_sequences == 3
    assert plan.segments(0) == [Segment(0, 0, 5)]
    assert plan.segments(1) == [Segment(0, 4, 5), Segment(1, 0, 4)]
    assert plan.segments(2) == [Segment(1, 3, 6)]


@pytest.mark.parametrize("stride", [1, 3, 8, 64])
def test_every_token_is_predicted_exactly_once(stride):
    lengths = np.array([1, 7, 2, 30, 5, 1])
    plan = Concatenation(stride + 1, stride, before=(0,), after=(0,)).plan(lengths)
    predicted = []
    for sequence in range(plan.num_sequences):
        places = [(p.document, t) for p in plan.segments(sequence) for t in range(p.start, p.stop)]
        predicted += places[1:]
    everything = [(d, t) for d, n in enumerate(lengths) for t in range(n + 2)]
    assert predicted == everything[1:]


def test_cut_frames_the_document():
    document = SimpleNamespace(tokens=np.array([7, 8, 9], np.uint16))
    packing = Concatenation(5, 4, before=(1,), after=(2,))
    assert packing.cut(document, Segment(0, 0, 5)).tolist() == [1, 7, 8, 9, 2]
    assert packing.cut(document, Segment(0, 3, 5)).tolist() == [9, 2]


@pytest.mark.parametrize("stride", [1, 3, 8, 64])
def test_pieces_hold_one_document_each_and_predict_its_tokens_once(stride):
    lengths = np.array([1, 7, 2, 30, 5, 0])
    plan = Pieces(stride + 1, stride, before=(0,), after=(0,)).plan(lengths)
    pieces = [plan.segments(sequence) for sequence in range(plan.num_sequences)]
    assert all(len(piece) == 1 and piece[0].stop - piece[0].start <= stride + 1 for piece in pieces)
    predicted = [(p.document, t) for (p,) in pieces for t in range(p.start + 1, p.stop)]
    assert predicted == [(d, t) for d, n in enumerate(lengths) for t in range(1, n + 2)]


def test_short_pieces_are_left_out():
    plan = Pieces(4, 4, shortest=3).plan(np.array([2, 6, 11]))
    assert [plan.segments(n) for n in range(plan.num_sequences)] == [
        [Segment(1, 0, 4)],
        [Segment(2, 0, 4)],
        [Segment(2, 4, 8)],
        [Segment(2, 8, 11)],
    ]
