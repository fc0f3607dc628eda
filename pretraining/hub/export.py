"""`pretrain-export`: a checkpoint as a Hugging Face folder, whose outputs were compared before it is called done."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.common.command import run_command
from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import EXIT_DONE, InputError
from data_pipeline.common.fields import configclass
from data_pipeline.shards.manifest import load_manifest
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.models.registry import huggingface_family
from pretraining.objectives.image.views import ImageViewsConfig
from pretraining.objectives.registry import build_objective
from pretraining.run.checkpoint import open_checkpoint
from pretraining.run.prepared import sample_spec
from pretraining.run.run_dir import load_plain_model, read_run_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pretraining.models.base import Model

EXAMPLE = """pretrain-export: writes a checkpoint as a Hugging Face folder, with the parity check.

Example:
  pretrain-export checkpoint=runs/first/checkpoints/step_00001000 output=exported/first
"""


@configclass
class ExportConfig:
    """What is exported, and whereto.

    checkpoint: RUN/checkpoints/step_..., of a run whose RUN/config.yaml stands where it was written.
    output: the folder to write; it must not exist.
    data_path: where the run's prepared data is now; null means the run's data.path.
    """

    checkpoint: str
    output: str
    data_path: str | None = None


def main() -> int:
    return run_command(_command, EXAMPLE, "export", ExportConfig)


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes `config.output` -> what its parity.json says. Raises InputError, and then leaves no folder."""
    source = Source(config)
    values = source.huggingface_config()
    model: Model = load_plain_model(source.run, source.outputs, source.objective, source.checkpoint)
    with new_folder(Path(config.output)) as folder:
        _write_json(folder / "config.json", values)
        _write_generation_config(folder, values)
        _write_weights(folder, source, model)
        report = {
            "checkpoint": str(source.checkpoint.folder),
            "step": source.checkpoint.state["step"],
            **_prove_model(folder, source, model, values),
        }
        if source.tokenizer is not None:
            report |= _write_tokenizer(folder, source.tokenizer, source.run.seq_len)
        else:
            _write_processor(folder, source)
        _write_json(folder / "parity.json", report)
    return report


class Source:
    """What is read and checked before anything is written: run config, checkpoint, tokenizer.

    outputs: the size of the vocabulary or the number of classes. objective: the run's, whose heads the model has.
    """

    def __init__(self, config: ExportConfig) -> None:
        if Path(config.output).exists():
            raise InputError(f"output={config.output} exists already and is not overwritten")
        self.checkpoint = open_checkpoint(Path(config.checkpoint))
        self.run = read_run_config(self.checkpoint.folder.resolve().parents[1])
        self.family = huggingface_family(self.run.model.name)
        data = Path(config.data_path or self.run.data.path or "")
        if not (data / "manifest.json").is_file():
            raise InputError(f"{data}: there is no prepared data; data_path=DIR says where it is now")
        manifest = load_manifest(data)
        self.tokenizer = Tokenizer.load(data / "tokenizer") if manifest.kind == "text" else None
        self.classes = manifest.classes
        self.outputs = self.tokenizer.total_size if self.tokenizer else len(self.classes)
        self.objective = build_objective(self.run.objective, sample_spec(self.run, self.tokenizer, self.classes))

    def huggingface_config(self) -> dict[str, Any]:
        """config.json. Raises InputError where transformers has no such model."""
        from pretraining.models.shapes import shapes_of

        model = shapes_of(self.run.model, self.outputs, self.objective)
        values = self.family.huggingface_config(model, self.special_ids)
        return values if self.tokenizer else {**values, **self.image_views.huggingface_config(tuple(self.classes))}

    @property
    def image_views(self) -> ImageViewsConfig:
        """Of a run on images."""
        assert isinstance(self.run.objective, ImageViewsConfig)
        return self.run.objective

    @property
    def special_ids(self) -> dict[str, int]:
        return {} if self.tokenizer is None else self.tokenizer.special_ids


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder under a temporary name beside `target`: renamed when the block is done, removed on an exception."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            raise InputError(f"output={target} exists already and is not overwritten")
        os.rename(temporary, target)
    except OSError as error:
        raise InputError(f"output={target}: {error.strerror or error} {error.filename or ''}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _command(overrides: list[str]) -> int:
    config = compose_config("export", overrides, ExportConfig)
    report = export(config)
    print(f"largest difference of the outputs: {report['max_abs_difference']:.2e} (bound: {report['tolerance']:.0e})")
    print(f"Hugging Face folder: {config.output}")
    return EXIT_DONE


def _write_generation_config(folder: Path, values: dict[str, Any]) -> None:
    """The special ids that generation needs, for models that have an end of text."""
    if "eos_token_id" in values:
        keys = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        _write_json(folder / "generation_config.json", {key: values[key] for key in keys if key in values})


def _write_weights(folder: Path, source: Source, model: Model) -> None:
    from safetensors.torch import save_file

    tensors = model.state_dict()  # buffers as well: fixed positions, which transformers has as parameters
    entries = source.family.weight_map(model)
    missing = {name for name, _ in model.named_parameters()} - {entry.ours for entry in entries}
    assert not missing, f"the weight map leaves out {sorted(missing)}"
    weights = {e.theirs: e.export(tensors[e.ours].detach()).clone().contiguous() for e in entries}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _prove_model(folder: Path, source: Source, model: Model, values: dict[str, Any]) -> dict[str, Any]:
    """-> what parity.json says of it. Raises InputError where transformers' model of the folder computes something else
    than ours."""
    import torch
    import transformers
    from safetensors.torch import save_file

    from pretraining.hub import parity

    (architecture,) = values["architectures"]
    assert architecture in source.family.architectures, architecture
    examples = parity.probes(source.family, model, source.outputs)
    ours = parity.our_outputs(source.family, model, examples, values)
    theirs = parity.their_outputs(folder, architecture, examples, list(ours[0]))
    difference = parity.largest_difference(ours, theirs)
    if not difference <= parity.TOLERANCE:
        raise InputError(
            f"transformers' {architecture} differs from the checkpoint's model by {difference:.2e}, more "
            f"than {parity.TOLERANCE:.0e}: nothing was exported"
        )
    save_file(
        {f"{i}.{name}": t for i, inputs in enumerate(examples) for name, t in inputs.items()},
        folder / "parity_probe.safetensors",
    )
    return {
        "max_abs_difference": difference,
        "tolerance": parity.TOLERANCE,
        "architecture": architecture,
        "outputs": list(ours[0]),
        "probe_inputs": "parity_probe.safetensors",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, max_length: int) -> dict[str, Any]:
    """tokenizer.json and tokenizer_config.json -> what parity.json says of them. Raises InputError where the tokenizer
    read back from them encodes a text of EDGE_CASE_TEXTS differently from ours."""
    from transformers import AutoTokenizer

    from data_pipeline.tokenizers.export import EDGE_CASE_TEXTS, convert, disagreements, rounds_ties, tokenizer_config

    convert(tokenizer).save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer, max_length))
    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    loaded.model_max_length = sys.maxsize  # else transformers warns that the texts are too long for the model
    wrong = disagreements(_WithoutSpecials(loaded), tokenizer)
    if wrong:
        raise InputError(
            f"the exported tokenizer encodes {len(wrong)} texts differently from the run's, "
            f"{', '.join(wrong[:5])} among them: nothing was exported"
        )
    return {
        "tokenizer_texts": len(EDGE_CASE_TEXTS),
        "tokenizer_order_of_equal_scores_differs": rounds_ties(tokenizer),
    }


def _write_processor(folder: Path, source: Source) -> None:
    """How transformers turns an image into what an evaluation sees."""
    size = source.run.grid.image_size
    _write_json(folder / "preprocessor_config.json", source.image_views.huggingface_processor(size))


class _WithoutSpecials:
    """A transformers tokenizer that neither adds special tokens nor shows them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
