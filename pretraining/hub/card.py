"""The model card of an export, README.md: what it was trained on, how, to which loss, and by which command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_pipeline.common.compose import composed, conf_dir, read_config
from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import to_dict
from data_pipeline.shards.manifest import Split
from pretraining.config import RunConfig
from pretraining.run.metrics import read_metrics, step_of

# Task of the Hub's widget, where the weights fit one.
_TASKS = {
    "GPT2LMHeadModel": "text-generation",
    "OpenAIGPTLMHeadModel": "text-generation",
    "LlamaForCausalLM": "text-generation",
    "BertForPreTraining": "fill-mask",
    "BertForMaskedLM": "fill-mask",
    "ViTForImageClassification": "image-classification",
}


NAMES = ("data.sources", "data.shares")  # keys whose values have names of the user's own


@dataclass(frozen=True)
class Facts:
    """What the card tells beside the run's config.

    tokens: units so far, None where the checkpoint doesn't say. difference: between our outputs and transformers'.
    splits: of the prepared data, in a mixture with their corpus' name. seen: tokens or images. metrics: the run's
        metrics.jsonl.
    """

    architecture: str
    step: int
    tokens: int | None
    difference: float
    splits: Mapping[str, Split]
    seen: str
    metrics: Path


def model_card(facts: Facts, run: RunConfig) -> str:
    task = _TASKS.get(facts.architecture)
    head = ["library_name: transformers", *([f"pipeline_tag: {task}"] if task else []), "tags: [pretraining]"]
    command = command_of(run)
    sections = [
        "---\n" + "\n".join(head) + "\n---",
        f"# {run.model.name}, {run.objective.name}, step {facts.step}",
        f"A {facts.architecture} of transformers. Its outputs differ from the trained model's by at most "
        f"{facts.difference:.1e} (parity.json).",
        "## Data\n" + _data(facts, run),
        "## Losses\n" + _losses(facts),
        "## Command\n" + (f"```\n{command}\n```" if command else "No command line gives the configuration below."),
        "## Configuration\n```yaml\n" + _yaml(run) + "```",
    ]
    return "\n\n".join(sections) + "\n"


def _data(facts: Facts, run: RunConfig) -> str:
    units = "images" if facts.seen == "images" else "documents"
    lines = [
        f"- {name}: {split.documents} {units}" + (f", {split.tokens} tokens" if facts.seen == "tokens" else "")
        for name, split in facts.splits.items()
    ]
    folders = ", ".join(f"`{folder}`" for folder in run.data.folders.values())
    trained = "" if facts.tokens is None else f" Trained on {facts.tokens} {facts.seen}, repetitions included."
    return f"Prepared with `pretrain-data` in {folders}.{trained}\n" + "\n".join(lines)


def _losses(facts: Facts) -> str:
    """The last values up to the checkpoint's step."""
    lines = read_metrics(facts.metrics) if facts.metrics.is_file() else []
    found = []
    for key, meaning in (("loss", "training loss"), ("valid_loss", "validation loss")):
        line = next((x for x in reversed(lines) if key in x and step_of(x) <= facts.step), None)
        if line is not None:
            found.append(f"- {meaning} at step {line['step']}: {line[key]}")
    return "\n".join(found) or "The run's metrics.jsonl is not there."


def _yaml(run: RunConfig) -> str:
    return yaml.safe_dump(to_dict(run), sort_keys=False)


def command_of(run: RunConfig) -> str | None:
    """A `pretrain` command line that gives this very configuration, whatever was typed; None where there is none (a
    member of a group lies in a folder of the user's own)."""
    wanted = to_dict(run)
    groups = [f"{name}={wanted[name]['name']}" for name in ("objective", "optimizer", "scheduler", "engine")]
    if run.data.name == "mixture":
        groups.append("data=mixture")
    for preset in _nearest_presets(_flat(to_dict(run.model))):
        try:
            found = _overrides([f"model={preset}", *groups], wanted)
        except InputError:
            continue
        if found is not None:
            return found
    return None


def _nearest_presets(wanted: Mapping[str, object]) -> list[str]:
    """The presets of the same family, those first that leave the fewest keys to be said. wanted: of the model. Read
    without Hydra, which takes a tenth of a second for each."""
    stated = {file.stem: _flat(_stated(file.stem)) for file in (conf_dir() / "model").glob("*.yaml")}
    missed = {
        name: sum(1 if wanted.get(key, ...) != value else -1 for key, value in values.items())
        for name, values in stated.items()
        if values.get("name") == wanted["name"]
    }
    return sorted(missed, key=lambda name: (missed[name], name))


def _stated(preset: str) -> dict[str, object]:
    """What the preset's file says, and those that it is derived from."""
    own = yaml.safe_load((conf_dir() / "model" / f"{preset}.yaml").read_text())
    bases = [base for base in own.pop("defaults", []) if base != "_self_"]
    return {key: value for part in (*map(_stated, bases), own) for key, value in part.items()}


def _overrides(chosen: list[str], wanted: Mapping[str, object]) -> str | None:
    """`chosen` and every key that it leaves different; None where the whole doesn't read as wanted."""
    base = composed("pretrain", chosen, RunConfig)
    given, target = _flat(base.whole), _flat(wanted)
    if base.problems or given["model.name"] != target["model.name"]:
        return None
    words = [*chosen, *(f"{key}={_spelled(value)}" for key, value in target.items() if given.get(key, ...) != value)]
    again = composed("pretrain", words, RunConfig)
    if again.problems or to_dict(read_config(again.values, RunConfig)) != wanted:
        return None
    return " ".join(["pretrain", *map(shlex.quote, words)])


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and value and f"{prefix}{key}" not in NAMES
        found |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}  # type: ignore[arg-type]
    return found


def _spelled(value: object) -> str:
    """As Hydra reads it back: text in quotes where it is more than a word."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_spelled(inner)}' for key, inner in value.items())}}}"
    if not isinstance(value, str) or value.replace("_", "").replace("/", "").replace(".", "").isalnum():
        return value if isinstance(value, str) else json.dumps(value)
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
