"""What is known of transformers' architectures: the role that each plays, and what of it is proven. Free of torch.

An architecture that is not in the table runs on engine=torch, one process or DDP, with one document in a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

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
class Architecture:
    """What tests/models/test_huggingface_table.py and `make parity` show of one class of transformers.

    packs: a mask keeps packed documents apart, so that no gradient crosses their borders. zero_stages: those of
    engine=deepspeed that equal one process. masks: it takes a mask of four dimensions as it is.
    pair_logits: the output with the logits of a pair of segments, where the class has such a head.
    multiple: sequences must be a multiple of so many tokens; by the key of its config that says so.
    untrained: parameters, by the ending of their names, that no gradient reaches under the role's objective: not
    trained, as listed here; any other parameter without a gradient is refused.
    early: modules that act before the first block although their class makes them after the blocks.
    """

    role: Role
    packs: bool = False
    masks: bool = False
    zero_stages: frozenset[int] = frozenset()
    pair_logits: str | None = None
    multiple: str | None = None
    untrained: tuple[str, ...] = ()
    early: tuple[str, ...] = ()


KNOWN: dict[str, Architecture] = {
    "AlbertForMaskedLM": Architecture(Role.TOKEN_ENCODER, packs=True, masks=True, zero_stages=ZERO),
    "AlbertForPreTraining": Architecture(
        Role.TOKEN_ENCODER, packs=True, masks=True, zero_stages=ZERO, pair_logits="sop_logits"
    ),
    "BertForMaskedLM": Architecture(Role.TOKEN_ENCODER, packs=True, masks=True, zero_stages=ZERO),
    "BertForPreTraining": Architecture(
        Role.TOKEN_ENCODER, packs=True, masks=True, zero_stages=ZERO, pair_logits="seq_relationship_logits"
    ),
    "DistilBertForMaskedLM": Architecture(Role.TOKEN_ENCODER, packs=True, masks=True, zero_stages=ZERO),
    "ElectraForMaskedLM": Architecture(Role.TOKEN_ENCODER, packs=True, masks=True, zero_stages=ZERO),
    "RobertaForMaskedLM": Architecture(Role.TOKEN_ENCODER, packs=True, masks=True, zero_stages=ZERO),
    "GPT2LMHeadModel": Architecture(Role.DECODER, packs=True, masks=True, zero_stages=ZERO),
    "BartForConditionalGeneration": Architecture(
        Role.ENCODER_DECODER, masks=True, zero_stages=ZERO, early=("layernorm_embedding",)
    ),
}


def role_of(architecture: str) -> Role | None:
    """What an objective may ask of the class; None where neither the table nor its name says so."""
    if architecture in KNOWN:
        return KNOWN[architecture].role
    return next((role for ending, role in ROLE_BY_ENDING.items() if architecture.endswith(ending)), None)


def facts_of(architecture: str) -> Architecture:
    """The table's line, or that of a class of which nothing is proven. For names that have a role."""
    role = role_of(architecture)
    assert role is not None, architecture
    return KNOWN.get(architecture, Architecture(role))


# Their positions begin in the row behind the padding's, which has one of its own
BEHIND_PADDING = ("Roberta", "XLMRoberta", "Camembert", "Longformer", "Data2VecText", "MPNet", "IBert", "Luke")


def position_offset(architecture: str, vocabulary: Vocabulary) -> int:
    """The row of the class's position table that position 0 has, where its config counts the rows before it."""
    return vocabulary.special_ids["pad"] + 1 if architecture.startswith(BEHIND_PADDING) else 0
