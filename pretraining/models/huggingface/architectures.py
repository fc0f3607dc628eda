"""What is known of transformers' architectures: the role that each plays, and what of it is proven. Free of torch.

An architecture that is not in the table runs on engine=torch, one process or DDP, with one document in a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from data_pipeline.common.errors import InputError
from pretraining.models.roles import Role
from pretraining.models.vocabulary import Vocabulary

ZERO = frozenset({0, 1, 2, 3})
ROLE_BY_ENDING = {
    "ForMaskedLM": Role.TOKEN_ENCODER,
    "LMHeadModel": Role.DECODER,
    "ForCausalLM": Role.DECODER,
    "ModelWithLMHead": Role.DECODER,
    "ForConditionalGeneration": Role.ENCODER_DECODER,
    "MTModel": Role.ENCODER_DECODER,
    "ForImageClassification": Role.IMAGE_ENCODER,
}


@dataclass(frozen=True)
class Short:
    """A class of shorter sequences whose weights one of long sequences starts from, its positions repeated.

    model_type, prefix: of its config.json, and of its weights' names. taken: part of a name -> what the short class
    calls what is to be copied there.
    """

    model_type: str
    prefix: str
    taken: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Architecture:
    """What tests/models/test_huggingface.py and `make parity` (docs/parity_adapter.md) show of a class of transformers.

    packs: a mask keeps packed documents apart, so that no gradient crosses their borders.
    zero_stages: those of engine=deepspeed that equal one process.
    pair_logits: the output with the logits of a pair of segments, where the class has such a head.
    untrained: parameters, by the ending of their names, that no gradient reaches under the role's objective: they are
        not trained. Any other parameter without a gradient is refused.
    tables: parameters, by the ending of their names, that are tables as an embedding's is, in a module of another kind.
    early: modules that act before the first block although their class makes them after the blocks.
    batch_norm: it normalizes over the batch, see batch_norm.py. No table is needed to find such layers; one that the
        table does not know of is refused.
    short: what model.init_from takes besides folders of the same class.
    fixed_length: it trains on its longest sequences alone: its positions are a grid that they fill.
    own_seeds: the class seeds torch's generator by itself, from the clock, so that no dropout could be repeated.
    """

    role: Role | None
    packs: bool = False
    zero_stages: frozenset[int] = frozenset()
    pair_logits: str | None = None
    untrained: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    early: tuple[str, ...] = ()
    batch_norm: bool = False
    short: Short | None = None
    own_seeds: bool = False
    fixed_length: bool = False


_ENCODER = Architecture(Role.TOKEN_ENCODER, packs=True, zero_stages=ZERO)
_BART = Architecture(Role.ENCODER_DECODER, zero_stages=ZERO, early=("layernorm_embedding",))
_AXIAL = ("position_embeddings.weights.0", "position_embeddings.weights.1")
_GLOBAL = tuple(f"{part}_global.{kind}" for part in ("query", "key", "value") for kind in ("weight", "bias"))

KNOWN: dict[str, Architecture] = {
    "AlbertForMaskedLM": _ENCODER,
    "AlbertForPreTraining": replace(_ENCODER, pair_logits="sop_logits"),
    "BertForMaskedLM": _ENCODER,
    "BertForPreTraining": replace(_ENCODER, pair_logits="seq_relationship_logits"),
    "DistilBertForMaskedLM": _ENCODER,
    "ElectraForMaskedLM": _ENCODER,
    "RobertaForMaskedLM": _ENCODER,
    "XLMRobertaForMaskedLM": _ENCODER,
    # without global attention, as its masked language model was trained
    "LongformerForMaskedLM": Architecture(
        Role.TOKEN_ENCODER,
        zero_stages=ZERO,
        untrained=_GLOBAL,
        short=Short("roberta", "roberta", tuple((f"{part}_global.", f"{part}.") for part in ("query", "key", "value"))),
    ),
    "BigBirdForMaskedLM": Architecture(
        Role.TOKEN_ENCODER,
        zero_stages=ZERO,
        untrained=("pooler.weight", "pooler.bias"),
        short=Short("bert", "bert", (("pooler.", "pooler.dense."),)),
    ),
    "ReformerForMaskedLM": Architecture(
        Role.TOKEN_ENCODER,
        zero_stages=ZERO,
        untrained=("lm_head.bias",),
        tables=_AXIAL,
        own_seeds=True,
        fixed_length=True,
    ),
    "GPT2LMHeadModel": Architecture(Role.DECODER, packs=True, zero_stages=ZERO),
    "OpenAIGPTLMHeadModel": Architecture(Role.DECODER, zero_stages=ZERO),
    "BartForConditionalGeneration": _BART,
    "MBartForConditionalGeneration": _BART,
    # ZeRO 3 would deal out the running statistics, which every rank writes
    "ResNetForImageClassification": Architecture(Role.IMAGE_ENCODER, zero_stages=frozenset({0, 1, 2}), batch_norm=True),
}


def role_of(architecture: str) -> Role | None:
    """What an objective may ask of the class; None where neither the table nor its name says so."""
    if architecture in KNOWN:
        return KNOWN[architecture].role
    return next((role for ending, role in ROLE_BY_ENDING.items() if architecture.endswith(ending)), None)


def facts_of(architecture: str) -> Architecture:
    """The table's line, or that of a class of which nothing is proven."""
    return KNOWN.get(architecture, Architecture(role_of(architecture)))


# Their positions begin in the row after the padding's, which has one of its own
LAST_PADDING = 511
AFTER_PADDING = ("Roberta", "XLMRoberta", "Camembert", "Longformer", "Data2VecText", "MPNet", "IBert", "Luke")


def position_offset(architecture: str, vocabulary: Vocabulary) -> int:
    """The row of the class's position table that position 0 has, where its config counts the rows before it. Raises
    InputError where these would be thousands."""
    if not architecture.startswith(AFTER_PADDING):
        return 0
    pad = vocabulary.special_ids["pad"]
    if pad > LAST_PADDING:
        raise InputError(
            f"model.architecture={architecture}: positions begin after the row of the padding's id, which is {pad} "
            f"in the prepared data's tokenizer; at most {LAST_PADDING} is supported, as of one that has a padding"
        )
    return pad + 1
