"""Back to the last checkpoint before a loss spike, and on with the data after it (Chowdhery et al. 2022, "PaLM",
section 5.1: the batches around a spike do no harm where they come at another time)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.common.errors import Failure, InputError
from pretraining.parallel.fragments import Fragment
from pretraining.parallel.host import broadcast_text, run_on_all_ranks
from pretraining.parallel.world import World
from pretraining.run.checkpoint_format import Checkpoint, checkpoint_folders, open_checkpoint, step_of_folder
from pretraining.run.checkpoint_reader import load_tensors
from pretraining.run.incidents import Incidents
from pretraining.run.retention import set_aside_newer
from pretraining.run.tracking import Tracker

if TYPE_CHECKING:
    from torch import Tensor

Json = dict[str, Any]


def roll_back(
    incidents: Incidents,
    tensors: list[tuple[Fragment, Tensor]],
    tracker: Tracker,
    world: World,
    step: int,
    position: Json,
) -> Json | None:
    """Overwrites `tensors` by a checkpoint's, on all ranks -> its state; None where there is none before the spike.

    step, position: where the run stands; the data goes on from this position, also after a resume: the ledger says so.
    Raises Failure and InputError, on all ranks.
    """
    spiked_step = incidents.spiked_step or step
    answer: Json = {}
    if world.is_main:
        try:
            answer = _set_back(incidents, tracker, spiked_step, position)
        except (Failure, InputError, OSError) as error:
            answer = {"failure": f"no roll-back from the loss spike of step {spiked_step}: {error}"}
    answer = json.loads(broadcast_text(world, json.dumps(answer)))
    if "failure" in answer:
        raise Failure(answer["failure"])
    if "folder" not in answer:
        incidents.spiked_step = None
        tracker.note(f"warning: there is no checkpoint before step {spiked_step} to roll back to")
        return None
    checkpoint = open_checkpoint(Path(answer["folder"]))
    run_on_all_ranks(world, partial(load_tensors, checkpoint, tensors))
    tracker.note(f"rolled back from the loss spike of step {spiked_step} to step {checkpoint.state['step']}")
    return checkpoint.state


def _set_back(incidents: Incidents, tracker: Tracker, spiked_step: int, position: Json) -> Json:
    """What rank 0 does to the run's folder."""
    checkpoint = _target(incidents, spiked_step)
    if checkpoint is None:
        return {}
    step, start = checkpoint.state["step"], checkpoint.state["position"]
    # In this order: a job that is killed in between meets the same spike, and rolls back again.
    set_aside_newer(checkpoint.folder.parent, step)
    entry = {"kind": "rollback", "step": spiked_step, "to_step": step, "from": start, "to": position}
    incidents.ledger.append(entry)
    tracker.rewind(step)
    return {"folder": str(checkpoint.folder)}


def _target(incidents: Incidents, before: int) -> Checkpoint | None:
    """The newest whole checkpoint of a step before that one which was not rolled back to yet; None where there is none
    at all. Raises Failure where the run was rolled back to all."""
    done = [(entry.get("to_step"), entry.get("from")) for entry in incidents.ledger.read("rollback")]
    tried = False
    for folder in reversed(checkpoint_folders(incidents.run_dir / "checkpoints")):
        if step_of_folder(folder) >= before:
            continue
        try:
            checkpoint = open_checkpoint(folder)
        except InputError:  # not whole
            continue
        if (checkpoint.state["step"], checkpoint.state["position"]) not in done:
            return checkpoint
        tried = True
    if tried:
        raise Failure("the run was rolled back to every checkpoint before it, and the loss spiked again")
    return None


def passed_over(roll_backs: Sequence[Json], step: int, position: Json) -> Json:
    """Where the data goes on after `step` updates, at a position: beyond the batches that a roll-back to there passed
    over. So a run that goes on from an older checkpoint takes the course of the first time."""
    for entry in roll_backs:
        if entry.get("to_step") == step and entry.get("from") == position and isinstance(entry.get("to"), dict):
            return entry["to"]
    return position
