"""Which special tokens a tokenizer from elsewhere has itself: what its folder says first, names last."""

from __future__ import annotations

from collections.abc import Mapping

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import Location, join
from data_pipeline.common.json_files import read_json_if_there
from data_pipeline.tokenizers.special_tokens import ALL, ROLES, SENTINEL_ROLES, exported_sentinel

# Files beside a tokenizer.json that name its special tokens, the one that counts first.
_MAPS = ("tokenizer_config.json", "special_tokens_map.json")


def mapped_names(folder: Location) -> dict[str, str]:
    """Role -> name, as a tokenizer's folder maps them ("cls_token": "[CLS]"); empty where it has no such map."""
    found: dict[str, str] = {}
    for values in (read_json_if_there(join(folder, name)) for name in _MAPS):
        for role in ROLES:
            value = values.get(f"{role}_token")
            name = value.get("content") if isinstance(value, dict) else value
            if isinstance(name, str) and name:
                found.setdefault(role, name)
    return found


def require_pieces(given: Mapping[str, str], pieces: Mapping[str, int]) -> None:
    """Checks what tokenizer.special_tokens names. Raises InputError for an unknown role or piece."""
    unknown = sorted(given.keys() - set(ROLES) - set(SENTINEL_ROLES))
    if unknown:
        raise InputError(
            f"tokenizer.special_tokens: {unknown[0]} is not a role; there are {', '.join(ROLES)} and sentinel_0 to "
            f"{SENTINEL_ROLES[-1]}"
        )
    for role, name in given.items():
        if name not in pieces:
            raise InputError(f"tokenizer.special_tokens: {role}={name!r} is not a piece of the tokenizer")


def known_names() -> dict[str, tuple[str, ...]]:
    """Role -> its usual names, sentinels too."""
    names = {token.role: token.found_as for token in ALL}
    return {**names, **{role: (exported_sentinel(n),) for n, role in enumerate(SENTINEL_ROLES)}}


def complete(found: Mapping[str, int], size: int) -> dict[str, int]:
    """Role -> id of all roles, those of `found` as they are; the rest get the ids from `size` on, in a fixed order:
    pad, bos, eos, unk, mask, cls, sep, sentinels, fill-in-the-middle."""
    order = [*ROLES[:-3], *SENTINEL_ROLES, *ROLES[-3:]]
    lacking = [role for role in order if role not in found]
    added = {role: size + n for n, role in enumerate(lacking)}
    return {role: found[role] if role in found else added[role] for role in order}
