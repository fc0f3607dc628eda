"""Tokens that say which language a text is of (Liu et al. 2020, "Multilingual Denoising Pre-training", section 2.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from data_pipeline.common.errors import InputError
from data_pipeline.tokenizers.special_tokens import MAX_VOCABULARY

_NAME = re.compile("[a-z]{2,3}_[A-Z][A-Za-z]{1,3}")


def _named_like_mbarts(name: str) -> str:
    # An exported tokenizer reads special tokens from a text, as transformers' users expect: that of "en" would be found
    # in every "then".
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not spelled as in mBART's or NLLB's vocabulary: en_XX, zh_CN, zho_Hans")
    return name


Languages = Annotated[list[Annotated[str, AfterValidator(_named_like_mbarts)]], Field(max_length=1000)]


def language_ids(
    names: Sequence[str], known: Mapping[str, int], pieces: Mapping[str, int], first: int
) -> dict[str, int]:
    """Name -> id of `known` and of `names`: a piece that has the name already is its token; the others get the ids from
    `first` on, in their order."""
    found = dict(known)
    found |= {name: pieces[name] for name in names if name not in found and name in pieces}
    lacking = [name for name in dict.fromkeys(names) if name not in found]
    return found | {name: first + n for n, name in enumerate(lacking)}


def language_ids_from_json(values: object, file: str) -> dict[str, int]:
    """Raises InputError where they are none that a tokenizer may have."""
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(type(i) is int and 0 <= i < MAX_VOCABULARY for i in values.values()):
        raise InputError(f"{file}: its languages are not names with ids from 0 to {MAX_VOCABULARY - 1}")
    return {str(name): i for name, i in values.items()}
