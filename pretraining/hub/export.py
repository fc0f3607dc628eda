"""`pretrain-export`: a checkpoint as a Hugging Face folder, whose outputs were compared before it is called done."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.common.command import run_command
from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import EXIT_DONE, InputError
from data_pipeline.common.fields import PathText, configclass
from data_pipeline.common.files import is_folder, remove_folder, temporary_name
from data_pipeline.common.overrides import shortened
from data_pipeline.shards.manifest import load_manifest
from data_pipeline.tokenizers.export import exported_ids
from data_pipeline.tokenizers.sentencepiece_export import sentencepiece_file
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.hub.card import Facts, model_card
from pretraining.models.registry import huggingface_families
from pretraining.objectives.image.views import ImageViewsConfig
from pretraining.objectives.registry import build_objective
from pretraining.run.checkpoint_format import Checkpoint, checkpoint_folders, newest_checkpoint, open_checkpoint
from pretraining.run.metrics import METRICS
from pretraining.run.prepared import sample_spec, vocabulary_of
from pretraining.run.run_dir import load_plain_model, read_run_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pretraining.models.base import Model
    from pretraining.models.huggingface_map import HuggingFaceFamily

EXAMPLE = """pretrain-export: writes a checkpoint as a Hugging Face folder, with the parity check.

Example:
  pretrain-export checkpoint=runs/first/checkpoints/step_00001000 output=exported/first
"""


# Beside the weights and with their ending, whatever loads *.safetensors would take it for a part of them.
PROBES = "parity/probe_inputs.tensors"  # in the format of safetensors


@configclass
class ExportConfig:
    """What is exported, and where to.

    checkpoint: RUN/checkpoints/step_..., of a run whose RUN/config.yaml stands where it was written; or RUN, whose
      newest whole checkpoint is taken.
    output: the folder to write; it must not exist.
    data_path: where the run's prepared data is now; null means the run's data.path.
    modules: your own, which the run imports too; config.yaml alone cannot make anything be imported.
    """

    checkpoint: PathText
    output: PathText
    data_path: PathText | None = None
    modules: list[str] = field(default_factory=list)


def main() -> int:
    return run_command(_command, EXAMPLE, "export", ExportConfig)


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes `config.output` -> what its parity.json says. Raises InputError, and then leaves no folder."""
    source = Source(config)
    values = {name: source.huggingface_config(family) for name, family in source.families.items()}
    model: Model = load_plain_model(source.run, source.vocabulary, source.objective, source.checkpoint)
    with new_folder(Path(config.output)) as folder:
        reports = {
            name: _write_part(folder / name, source, family, model, values[name])
            for name, family in source.families.items()
        }
        worst = max(report["max_abs_difference"] for report in reports.values())
        report = {**reports[""], "max_abs_difference": worst}
        (folder / "README.md").write_text(model_card(source.facts(report), source.run))
        _make_readable(folder)
    return report


class Source:
    """What is read and checked before anything is written: run config, checkpoint, tokenizer.

    families: by the folder within the output, "" for the output itself; a model of two parts has two. vocabulary: what
    the model reads and predicts. objective: the run's, whose heads the model has. used: the ids that leave, without
    gaps and in this order; None for images.
    """

    def __init__(self, config: ExportConfig) -> None:
        if os.path.lexists(config.output):
            raise InputError(f"output={config.output} exists already and is not overwritten")
        self.checkpoint = find_checkpoint(Path(config.checkpoint))
        self.run = read_run_config(self.checkpoint.folder.resolve().parents[1], config.modules)
        self.families = huggingface_families(self.run.model.name, self.run.model)
        folders = {"": config.data_path} if config.data_path is not None else self.run.data.folders
        for folder in folders.values():
            if not (Path(folder) / "manifest.json").is_file():
                raise InputError(f"{folder}: there is no prepared data; data_path=DIR says where it is now")
        manifests = {name: load_manifest(folder) for name, folder in folders.items()}
        self.splits = {
            f"{name} {split}".strip(): found for name, m in manifests.items() for split, found in m.splits.items()
        }
        first = next(iter(manifests.values()))  # the corpora of a mixture have one vocabulary
        self.tokenizer = Tokenizer.load(Path(first.root) / "tokenizer") if first.tokenizer else None
        self.classes = first.classes
        self.vocabulary = vocabulary_of(self.tokenizer, self.classes)
        self.objective = build_objective(self.run.objective, sample_spec(self.run, self.tokenizer, self.classes))
        self.used = self.objective.used_ids()

    def huggingface_config(self, family: HuggingFaceFamily[Any]) -> dict[str, Any]:
        """config.json. Raises InputError where transformers has no such model."""
        from pretraining.models.shapes import shapes_of

        model = shapes_of(self.run.model, self.vocabulary, self.objective)
        values = family.huggingface_config(model, self.special_ids)
        if self.objective.decoder_start is not None:
            values["decoder_start_token_id"] = self.special_ids.get(self.objective.decoder_start)
        if self.used is not None:
            return {**values, "vocab_size": len(self.used)}
        return {**values, **self.image_views.huggingface_config(tuple(self.classes))}

    @property
    def image_views(self) -> ImageViewsConfig:
        """Of a run on images."""
        assert isinstance(self.run.objective, ImageViewsConfig)
        return self.run.objective

    @property
    def special_ids(self) -> dict[str, int]:
        """Role -> id in the exported vocabulary, of the roles that leave."""
        if self.tokenizer is None:
            return {}
        numbers = exported_ids(self.tokenizer, self.used)
        return {role: numbers[i] for role, i in self.tokenizer.special_ids.items() if i in numbers}

    def facts(self, report: Mapping[str, Any]) -> Facts:
        """What the model card tells. report: parity.json."""
        return Facts(
            architecture=report["architecture"],
            step=report["step"],
            tokens=self.checkpoint.state.get("tokens"),
            difference=report["max_abs_difference"],
            splits=self.splits,
            seen="images" if self.tokenizer is None else "tokens",
            metrics=self.checkpoint.folder.resolve().parents[1] / METRICS,
        )


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, or the newest whole one of the run there. Raises InputError."""
    if not is_folder(path):
        raise InputError(f"checkpoint={shortened(str(path))}: there is no such folder")
    runs = [folder for folder in (path / "checkpoints", path) if checkpoint_folders(folder)]
    if not runs or (path / "manifest.json").is_file():
        return open_checkpoint(path)
    found = newest_checkpoint(runs[0])
    if found is None:
        raise InputError(f"checkpoint={path}: none of its {len(checkpoint_folders(runs[0]))} checkpoints is whole")
    print(f"checkpoint={path}: its newest is taken, {found.folder}")
    return found


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder under a temporary name beside `target`: renamed when the block is done, removed on an exception."""
    temporary = Path(temporary_name(target))
    try:
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if os.path.lexists(target):
                raise InputError(f"output={target} exists already and is not overwritten")
            os.rename(temporary, target)
        finally:  # only from here on is the folder ours
            remove_folder(temporary)
    except OSError as error:
        raise InputError(f"output={target}: {error.strerror or error} {error.filename or ''}") from error


def _command(overrides: list[str]) -> int:
    config = compose_config("export", overrides, ExportConfig)
    report = export(config)
    print(f"largest difference of the outputs: {report['max_abs_difference']:.2e} (bound: {report['tolerance']:.0e})")
    print(f"Hugging Face folder: {config.output}")
    return EXIT_DONE


def _write_part(
    folder: Path, source: Source, family: HuggingFaceFamily[Any], model: Model, values: dict[str, Any]
) -> dict[str, Any]:
    """Everything of one folder but the card -> what its parity.json says."""
    folder.mkdir(exist_ok=True)
    _write_json(folder / "config.json", values)
    _write_generation_config(folder, values)
    _write_weights(folder, source, family, model)
    report = {
        "checkpoint": str(source.checkpoint.folder),
        "step": source.checkpoint.state["step"],
        **_prove_model(folder, source, family, model, values),
    }
    if source.tokenizer is not None:
        report |= _write_tokenizer(folder, source, source.tokenizer, family, values)
    else:
        _write_processor(folder, source)
    _write_json(folder / "parity.json", report)
    return report


def _write_generation_config(folder: Path, values: dict[str, Any]) -> None:
    """The special ids that generation needs, for models that have an end of text."""
    if "eos_token_id" in values:
        keys = ["eos_token_id", "pad_token_id"]
        if values.get("decoder_start_token_id", 0) is not None:
            keys += ["bos_token_id", "decoder_start_token_id"]
        # else each language has its own start, in whose place transformers would take bos
        _write_json(folder / "generation_config.json", {key: values[key] for key in keys if key in values})


def _write_weights(folder: Path, source: Source, family: HuggingFaceFamily[Any], model: Model) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = model.state_dict()  # buffers as well: fixed positions, which transformers has as parameters
    entries = family.weight_map(model)
    mapped = {entry.ours for part in source.families.values() for entry in part.weight_map(model)}
    missing = {name for name, _ in model.named_parameters()} - mapped
    assert not missing, f"the weight map leaves out {sorted(missing)}"
    weights = {}
    for entry in entries:
        tensor = entry.export(tensors[entry.ours].detach())
        leaving = tensor if source.used is None or not entry.by_token else tensor[torch.from_numpy(source.used)]
        weights[entry.theirs] = leaving.clone().contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _prove_model(
    folder: Path, source: Source, family: HuggingFaceFamily[Any], model: Model, values: dict[str, Any]
) -> dict[str, Any]:
    """-> what parity.json says of it. Raises InputError where transformers' model of the folder computes something else
    than ours."""
    import torch
    import transformers
    from safetensors.torch import save_file

    from pretraining.hub import parity

    (architecture,) = values["architectures"]
    assert architecture in family.architectures, architecture
    examples = parity.probes(family, model, source.vocabulary.outputs, source.used)
    ours = parity.our_outputs(family, model, examples, values, source.used)
    theirs = parity.their_outputs(folder, architecture, examples, list(ours[0]))
    difference = parity.largest_difference(ours, theirs)
    if not difference <= parity.TOLERANCE:
        raise InputError(
            f"transformers' {architecture} differs from the checkpoint's model by {difference:.2e}, more "
            f"than {parity.TOLERANCE:.0e}: nothing was exported"
        )
    (folder / PROBES).parent.mkdir()
    probes = {f"{i}.{name}": t for i, inputs in enumerate(examples) for name, t in inputs.items()}
    save_file(probes, folder / PROBES)
    return {
        "max_abs_difference": difference,
        "tolerance": parity.TOLERANCE,
        "architecture": architecture,
        "outputs": list(ours[0]),
        "probe_inputs": PROBES,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _write_tokenizer(
    folder: Path, source: Source, tokenizer: Tokenizer, family: HuggingFaceFamily[Any], values: dict[str, Any]
) -> dict[str, Any]:
    """tokenizer.json, tokenizer_config.json and, for Llama, tokenizer.model -> what parity.json says of them. Raises
    InputError where the tokenizer read back from them encodes a text of EDGE_CASE_TEXTS differently from ours."""
    from transformers import AutoTokenizer

    from data_pipeline.tokenizers.export import convert, disagreements, rounds_ties, texts_to_compare, tokenizer_config

    frame = source.objective.frame or family.frame
    convert(tokenizer, source.used, frame).save(str(folder / "tokenizer.json"))
    settings = tokenizer_config(tokenizer, source.run.seq_len, source.used, frame)
    _write_json(folder / "tokenizer_config.json", settings)
    if values["model_type"] == "llama" and (data := sentencepiece_file(tokenizer, source.used)) is not None:
        (folder / "tokenizer.model").write_bytes(data)
    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    loaded.model_max_length = sys.maxsize  # else transformers warns that the texts are too long for the model
    texts = texts_to_compare(tokenizer)
    wrong = disagreements(_WithoutSpecials(loaded), tokenizer, texts)
    if wrong:
        raise InputError(
            f"the exported tokenizer encodes {len(wrong)} texts differently from the run's, "
            f"{', '.join(wrong[:5])} among them: nothing was exported"
        )
    return {
        "tokenizer_texts": len(texts),
        "tokenizer_order_of_equal_scores_differs": rounds_ties(tokenizer),
    }


def _write_processor(folder: Path, source: Source) -> None:
    """How transformers turns an image into what an evaluation sees."""
    size = source.run.grid.image_size
    _write_json(folder / "preprocessor_config.json", source.image_views.huggingface_processor(size))


class _WithoutSpecials:
    """A transformers tokenizer that neither adds special tokens nor reads or shows them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def _make_readable(folder: Path) -> None:
    """Every file for whoever may read the folder; safetensors writes its own for the owner alone."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
