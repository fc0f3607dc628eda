"""What must be the same on all ranks, compared before it counts: code, config, data, the checkpoint to start from, and
the weights that several of them hold."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from data_pipeline.common.errors import Failure, InputError
from data_pipeline.common.fields import to_dict
from pretraining.config import RunConfig
from pretraining.parallel.host import Ranks, broadcast_text, run_on_all_ranks
from pretraining.run.checkpoint_format import Checkpoint, open_checkpoint
from pretraining.run.ownership import LostOwnership, Ownership

if TYPE_CHECKING:
    from pretraining.parallel.world import World

PACKAGES = ("pretraining", "data_pipeline")
LIBRARIES = ("torch", "numpy", "deepspeed", "megatron-core")
MOST_TOLD = 8  # differences of one rank, and ranks
ROUNDINGS = 1e-4  # of the largest value of a tensor


def require_same(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    """facts: plain values by key, of this rank. Raises InputError on all ranks, with the keys that differ by rank."""
    if ranks.size == 1:
        return
    mine = {key: json.dumps(value, sort_keys=True) for key, value in facts.items()}
    first = json.loads(broadcast_text(ranks, json.dumps(mine)))
    differing = [
        f"{key} is {_short(mine.get(key))}, on rank 0 {_short(first.get(key))}"
        for key in sorted(mine.keys() | first.keys())
        if mine.get(key) != first.get(key)
    ]
    told = ranks.gather_texts("; ".join(differing[:MOST_TOLD]) or None)
    found = [f"rank {rank}: {text}" for rank, text in enumerate(told) if text is not None]
    if found:
        more = f", and {len(found) - MOST_TOLD} more ranks" if len(found) > MOST_TOLD else ""
        raise InputError(f"the ranks do not agree. {'. '.join(found[:MOST_TOLD])}{more}")


def _short(value: str | None) -> str:
    return "missing" if value is None else value if len(value) <= 60 else f"{value[:57]}..."


def config_facts(config: RunConfig) -> dict[str, Any]:
    """The whole config, flat: {"train.steps": 1000, ...}."""
    found: dict[str, Any] = {}

    def walk(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                found[f"{prefix}{key}"] = value

    walk(to_dict(config), "")
    return found


def code_facts(modules: list[str]) -> dict[str, Any]:
    """Versions and a hash of the source. modules: the user's own, imported already."""
    files = [path for package in PACKAGES for path in _sources(package)]
    files += [Path(file) for name in modules if (file := sys.modules[name].__file__) is not None]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    facts: dict[str, Any] = {"the code": digest.hexdigest()[:16], "Python": sys.version.split()[0]}
    for name in LIBRARIES:
        try:
            facts[f"the version of {name}"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[f"the version of {name}"] = None
    return facts


def _sources(package: str) -> list[Path]:
    file = sys.modules[package].__file__
    assert file is not None, "the packages have an __init__.py"
    return sorted(Path(file).parent.rglob("*.py"))


def agree_on_checkpoint(ranks: Ranks, choose: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """The checkpoint that rank 0 chooses, on every rank. Raises InputError on all where `choose` does, or where a rank
    sees another one under that name, or none: network file systems show names late, and hosts may mount other disks."""
    chosen = run_on_all_ranks(ranks, lambda: choose() if ranks.is_main else None)
    told = json.loads(broadcast_text(ranks, json.dumps(None if chosen is None else _named(chosen))))
    if told is None:
        return None
    return run_on_all_ranks(ranks, lambda: chosen or _open_as_told(told))


def _named(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = hashlib.sha256((checkpoint.folder / "manifest.json").read_bytes()).hexdigest()[:16]
    return {"folder": str(checkpoint.folder), "step": checkpoint.state.get("step"), "manifest": manifest}


def _open_as_told(told: dict[str, Any]) -> Checkpoint:
    found = open_checkpoint(Path(told["folder"]))
    mine = _named(found)
    if mine != told:
        raise InputError(
            f"{told['folder']}: this rank sees another checkpoint than rank 0: step {mine['step']}, manifest "
            f"{mine['manifest']}, where rank 0 has step {told['step']}, {told['manifest']}. Is it each host's own disk?"
        )
    return found


class HasReplicas(Protocol):
    """An engine."""

    def unequal_replicas(self) -> Mapping[str, float]:
        """See pretraining.parallel.replicas."""
        ...


def require_equal_replicas(world: World, engine: HasReplicas, deterministic: bool, when: str) -> None:
    """Raises Failure on all ranks where weights that several of them hold are not the same. A collective.

    deterministic: train.deterministic. Without it some CUDA kernels add in no fixed order, so that copies which each
    rank updates by itself may drift apart by roundings: up to ROUNDINGS that is reported only.
    """
    if world.size == 1:
        return
    exact = deterministic or world.device.type == "cpu"
    apart: dict[str, float] = {}
    for text in world.gather_texts(json.dumps(engine.unequal_replicas())):
        for name, distance in json.loads(text or "{}").items():
            apart[name] = max(distance, apart.get(name, 0.0))
    if not apart:
        return
    names = sorted(apart)
    told = (
        f"the ranks' copies of {len(names)} weights are not the same {when}: {', '.join(names[:5])}"
        f"{', ...' if len(names) > 5 else ''}, up to {max(apart.values()):.1g} of the largest value"
    )
    if exact or max(apart.values()) > ROUNDINGS:
        raise Failure(
            f"{told}. None of it was saved: the same command goes on from the newest checkpoint. Where it happens "
            "again, a device or its memory may be faulty"
        )
    if world.is_main:
        print(f"warning: {told}: roundings, by kernels that train.deterministic=true avoids", file=sys.stderr)


def require_ownership(world: World, owner: Ownership | None) -> None:
    """Raises LostOwnership on all ranks where another job has the run_dir now. owner: on rank 0."""
    taken = world.gather_texts(None if owner is None else owner.taken_over())[0]
    if taken is not None:
        raise LostOwnership(f"{taken}. This run stops and writes nothing more")
