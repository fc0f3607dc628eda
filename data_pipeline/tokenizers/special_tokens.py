"""The one table of special tokens: their roles, the order of their ids, and what they are called where."""

from __future__ import annotations

from typing import NamedTuple

MAX_VOCABULARY = 1 << 24  # ids of a tokenizer: the largest published ones have 10^6
SENTINELS = 100  # of span corruption (T5's <extra_id_0> to <extra_id_99>)


class SpecialToken(NamedTuple):
    """role: the attribute of Tokenizer that holds its id. exported: its name in a vocabulary that we export. found_as:
    its names in tokenizers made elsewhere, the most usual first. in_transformers: whether transformers gives the role
    an attribute of its own (`mask_token`)."""

    role: str
    exported: str
    found_as: tuple[str, ...] = ()
    in_transformers: bool = True

    @property
    def shown(self) -> str:
        """How a person reads it in a sample."""
        return f"[{self.role.upper()}]"


# A tokenizer from elsewhere may have any of them itself; then its own ids are used. These four count as pieces.
NATIVE = (
    SpecialToken("pad", "<pad>", ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")),
    SpecialToken("bos", "<s>", ("<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>")),
    SpecialToken("eos", "</s>", ("</s>", "<eos>", "[EOS]", "<|end_of_text|>", "<|endoftext|>")),
    SpecialToken("unk", "<unk>", ("[UNK]", "<unk>", "<|unk|>")),
)
# The ids of those that it lacks follow the pieces, in this order, the sentinels between the two groups.
BEFORE_SENTINELS = (
    SpecialToken("mask", "<mask>", ("[MASK]", "<mask>")),
    SpecialToken("cls", "<cls>", ("[CLS]", "<cls>")),
    SpecialToken("sep", "<sep>", ("[SEP]", "<sep>")),
)
FILL_IN_THE_MIDDLE = (
    SpecialToken("fim_prefix", "<fim_prefix>", ("<fim_prefix>", "<|fim_prefix|>"), in_transformers=False),
    SpecialToken("fim_middle", "<fim_middle>", ("<fim_middle>", "<|fim_middle|>"), in_transformers=False),
    SpecialToken("fim_suffix", "<fim_suffix>", ("<fim_suffix>", "<|fim_suffix|>"), in_transformers=False),
)
ALL = (*NATIVE, *BEFORE_SENTINELS, *FILL_IN_THE_MIDDLE)  # but for the sentinels, which are counted


SENTINEL_ROLES = tuple(f"sentinel_{n}" for n in range(SENTINELS))
ROLES = tuple(token.role for token in ALL)


def exported_sentinel(number: int) -> str:
    """The name of a sentinel in a vocabulary that we export, and in T5's."""
    return f"<extra_id_{number}>"


def shown_sentinel(number: int) -> str:
    return f"[SENTINEL {number}]"
