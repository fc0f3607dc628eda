"""Every entry of OBJECTIVES keeps the contract of objectives/base.py, and one from outside the package does as well."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.common.registry import load
from data_pipeline.loader import Sample, sample_hash
from data_pipeline.stream.packing import Packing
from data_pipeline.stream.stream import Position, Stream
from pretraining.config import load_config
from pretraining.labels import IGNORED
from pretraining.models.heads import attach_heads
from pretraining.models.registry import FAMILIES, build_model
from pretraining.models.roles import Role
from pretraining.objectives.base import Demonstration, Objective, SampleSpec, Unit
from pretraining.objectives.registry import OBJECTIVES, ObjectiveEntry, build_objective, objectives_for
from pretraining.parallel.layers import PlainLayers
from pretraining.run.prepared import Prepared

MODELS = {
    Role.DECODER: "gpt_debug",
    Role.RECURRENT_DECODER: "transformer_xl_debug",
    Role.TOKEN_ENCODER: "bert_debug",
    Role.GENERATOR_DISCRIMINATOR: "electra_debug",
    Role.PERMUTED_ENCODER: "xlnet_debug",
    Role.ENCODER_DECODER: "t5_debug",
    Role.BIDIRECTIONAL_DECODER: "elmo_debug",
    Role.IMAGE_ENCODER: "vit_debug",
    Role.MASKED_IMAGE_AUTOENCODER: "mae_debug",
}
TEXT = ("model.max_seq_len=32",)
IMAGES = ("model.image_size=8", "model.patch_size=4")
CASES = [
    ("causal_lm", ()),
    ("causal_lm", ("fim_rate=0.5", "cross_document_attention=true")),
    ("recurrent_lm", ("segment=8",)),
    ("masked_lm", ()),
    ("masked_lm", ("pairing=none",)),
    ("masked_lm", ("pairing=sentence_order", "masking=ngram")),
    ("replaced_token", ()),
    ("translation_lm", ()),
    ("permutation_lm", ("warm=1",)),
    ("bidirectional_lm", ()),
    ("span_corruption", ()),
    ("span_corruption", ("mode=ul2",)),
    ("denoising", ()),
    ("denoising", ("noise=delete", "rotated_documents=0.5", "whole_words=true")),
    ("translation", ()),
    ("image_classification", ("mixup=0.4", "cutmix=1.0", "rand_augment_ops=1")),
    ("masked_image", ()),
]
DEFAULTS = {
    "for_evaluation",
    "picture",
    "target_bytes",
    "scores",
    "used_ids",
    "target_length",
    "packing_of",
}  # what a class may leave as the Protocol has it
# but for documents rearranged at a rate
DRAW_NOTHING = ("causal_lm", "recurrent_lm", "bidirectional_lm", "translation")
METHODS = {name for name, member in vars(Objective).items() if inspect.isfunction(member) and name[0] != "_"}


@dataclass
class Built:
    """An objective of a run, with samples and a model."""

    name: str
    objective: Objective
    stream: Stream
    model: torch.nn.Module

    def samples(self, count: int, first: int = 0) -> list[Sample]:
        return [self.sample(number) for number in range(first, first + count)]

    def sample(self, number: int, seed: int | None = None) -> Sample:
        rng = np.random.default_rng(number if seed is None else seed)
        return self.objective.corrupt(self.stream.sequence(self.stream.advance(Position(), number)), rng)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: " ".join([case[0], *case[1]]))
def built(request: pytest.FixtureRequest, corpus: Path, pairs: Path, digits: Path) -> Iterator[Built]:
    name, options = request.param
    entry, folders = OBJECTIVES[name], {"text": corpus, "pairs": pairs, "images": digits}
    config = load_config(
        [
            f"objective={name}",
            f"model={MODELS[entry.role]}",
            f"data.path={folders[entry.data]}",
            "model.num_layers=1",
            "model.hidden_size=16",
            *(() if entry.role == Role.BIDIRECTIONAL_DECODER else ("model.num_heads=2",)),  # an LSTM has none
            *(IMAGES if entry.data == "images" else TEXT),
            *(f"objective.{option}" for option in options),
        ]
    )
    data = Prepared(config)
    objective = build_objective(config.objective, data.spec)
    layers = PlainLayers()
    model: Any = attach_heads(build_model(config.model, data.vocabulary, layers), objective, layers)
    model.initialize(1)
    yield Built(name, objective, Stream(data.reader("train"), objective.packing(), 1), model)


def test_every_objective_is_tested() -> None:
    assert {name for name, _ in CASES} == set(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_table_names_what_there_is(name: str) -> None:
    entry = OBJECTIVES[name]
    config = load(entry.config)
    assert config(name=name).name == name and config.__module__ == entry.objective.split(":")[0]
    assert list(inspect.signature(load(entry.objective)).parameters)[:2] == ["config", "spec"]
    assert any(entry.role in family.roles for family in FAMILIES.values())
    assert name in objectives_for({entry.role}) and objectives_for(set(Role)) == list(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_method_of_the_protocol_is_written(name: str) -> None:
    """A class inherits from the Protocol, so that mypy compares signatures; but it would inherit empty methods too."""
    objective = load(OBJECTIVES[name].objective)
    assert Objective in objective.__mro__
    required = METHODS - DEFAULTS
    assert required >= {"packing", "corrupt", "collate", "counts", "size", "loss", "describe", "demonstrate"}
    assert [m for m in sorted(required) if getattr(objective, m) is getattr(Objective, m)] == []


def test_loss_and_counts_name_the_terms_and_metrics(built: Built) -> None:
    samples = built.samples(4)
    batch = {name: torch.from_numpy(array) for name, array in built.objective.collate(samples).items()}
    sums, counts = built.objective.loss(built.model, batch), built.objective.counts(samples)
    terms, metrics = set(built.objective.terms), set(built.objective.metrics)
    assert set(sums) == set(counts) == terms | metrics and not terms & metrics
    for name, value in sums.items():
        assert value.dtype == torch.float32 and value.shape == () and value.isfinite()
        assert value.requires_grad == (name in terms)
    assert all(weight > 0 for weight in built.objective.terms.values())
    assert all(isinstance(count, int) and count >= 0 for count in counts.values()) and sum(counts.values()) > 0


def test_a_loss_draws_nothing(built: Built) -> None:
    batch = {name: torch.from_numpy(array) for name, array in built.objective.collate(built.samples(2)).items()}
    state = torch.get_rng_state()
    built.objective.loss(built.model, batch)
    assert torch.equal(state, torch.get_rng_state())


def test_a_sample_is_a_pure_function_of_segments_and_generator(built: Built) -> None:
    segments = built.stream.sequence(Position())
    hashes = [sample_hash(built.objective.corrupt(segments, np.random.default_rng(seed))) for seed in (3, 3, 4, 5, 6)]
    assert hashes[0] == hashes[1]
    assert hashes[0] == sample_hash(built.sample(0, seed=3))  # the calls before left the segments as they were
    if built.name not in DRAW_NOTHING:
        assert len(set(hashes)) > 1


def test_shapes_of_a_batch_do_not_depend_on_its_samples(built: Built) -> None:
    first, second = (built.objective.collate(built.samples(3, start)) for start in (0, 3))
    assert {n: (a.shape, a.dtype) for n, a in first.items()} == {n: (a.shape, a.dtype) for n, a in second.items()}
    assert all(len(array) == 3 for array in first.values())


def test_sizes_and_flops_are_those_of_the_unit(built: Built) -> None:
    sizes = [built.objective.size(sample) for sample in built.samples(4)]
    assert built.objective.unit == (Unit.IMAGES if OBJECTIVES[built.name].data == "images" else Unit.TOKENS)
    assert all(size == 1 for size in sizes) if built.objective.unit == Unit.IMAGES else all(2 < s < 80 for s in sizes)
    assert built.objective.flops_per_unit(built.model) > 1e3


def test_the_target_length_is_that_of_a_batch(built: Built) -> None:
    batch = built.objective.collate(built.samples(1))
    assert built.objective.target_length() == batch.get("decoder_inputs", np.zeros((1, 0))).shape[1]


def test_people_can_look_at_samples_and_at_what_a_model_does(built: Built, tmp_path: Path) -> None:
    evaluation = built.objective.for_evaluation()
    assert type(evaluation) is type(built.objective)
    for maker in (built.objective, evaluation):
        stream = Stream(built.stream.reader, maker.packing(), 1)
        sample = maker.corrupt(stream.sequence(Position()), np.random.default_rng(1))
        assert maker.describe(sample)
        assert isinstance(maker.picture(sample), Image.Image if maker.unit == Unit.IMAGES else type(None))
    shown = evaluation.demonstrate(built.model, Demonstration(built.samples(4), tmp_path, seed=1))
    assert isinstance(shown, str)
    assert all(str(path) in shown for path in tmp_path.iterdir())


class CountTokens(Objective[np.ndarray, Any]):
    """An objective from outside the package: only what the Protocol does not give it."""

    terms = {"count_tokens": 1.0}
    unit = Unit.TOKENS

    def __init__(self, config: SimpleNamespace, spec: SampleSpec) -> None:
        self.length = spec.seq_len

    def packing(self) -> Packing: ...

    def collate(self, samples: Sequence[Sample]) -> Sample:
        return {"labels": np.full((len(samples), self.length), IGNORED)}


def test_one_line_adds_an_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ObjectiveEntry("unused:Config", f"{__name__}:CountTokens", Role.DECODER, "text")
    monkeypatch.setitem(OBJECTIVES, "count_tokens", entry)
    objective = build_objective(SimpleNamespace(name="count_tokens"), SampleSpec(seq_len=7))
    assert isinstance(objective, CountTokens) and objective.collate([{}, {}])["labels"].shape == (2, 7)
    assert objective.for_evaluation() is objective and objective.target_length() == 0
    assert objective.metrics == () and objective.picture({}) is None
    assert objectives_for({Role.DECODER}) == ["causal_lm", "count_tokens"]
