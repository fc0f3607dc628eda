"""`pretrain-export`: a checkpoint leaves as a Hugging Face folder, once its logits were compared."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.common.command import run_command
from data_pipeline.common.compose import compose_config, conf_dir
from data_pipeline.common.errors import EXIT_DONE, InputError
from data_pipeline.common.fields import configclass
from data_pipeline.shards.manifest import load_manifest
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.run.checkpoint import open_checkpoint
from pretraining.run.run_dir import load_plain_model, read_run_config

EXAMPLE = """pretrain-export: writes a checkpoint as a Hugging Face folder, with the parity check.

Example:
  pretrain-export checkpoint=runs/first/checkpoints/step_00001000 output=exported/first
"""


@configclass
class ExportConfig:
    """checkpoint: RUN/checkpoints/step_... output: the folder to write. data_path: where the run's prepared data
    is now (null: its data.path)."""

    checkpoint: str
    output: str
    data_path: str | None


def main() -> int:
    return run_command(_command, lambda: f"{EXAMPLE}\nKeys and defaults:\n{(conf_dir() / 'export.yaml').read_text()}")


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes `config.output` -> what its parity.json says. Raises InputError, and then leaves no folder."""
    source = Source(config)
    values = source.huggingface_config()
    model = load_plain_model(source.run, source.vocab_size, source.checkpoint)
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
    """What is read and checked before anything is written: run config, checkpoint, tokenizer."""

    def __init__(self, config: ExportConfig) -> None:
        from pretraining.hub.parity import COUNTERPARTS

        if Path(config.output).exists():
            raise InputError(f"output={config.output} exists already: nothing is overwritten")
        self.checkpoint = open_checkpoint(Path(config.checkpoint))
        self.run = read_run_config(self.checkpoint.folder.resolve().parents[1])
        self.model_config: Any = self.run.model
        self.objective: Any = self.run.objective
        self.family = COUNTERPARTS[self.model_config.name]
        self.counterpart = self.family.load()
        data = Path(config.data_path or self.run.data.path or "")
        if not (data / "manifest.json").is_file():
            raise InputError(f"{data}: no prepared data is there; data_path=DIR says where it is now")
        manifest = load_manifest(data)
        self.tokenizer = Tokenizer.load(data / "tokenizer") if manifest.kind == "text" else None
        self.classes = manifest.classes
        self.vocab_size = self.tokenizer.total_size if self.tokenizer else len(self.classes)

    def huggingface_config(self) -> dict[str, Any]:
        """config.json. Raises InputError where transformers has no such model."""
        values = self.counterpart.huggingface_config(self.model_config, self.vocab_size, self.special_ids)
        return values if self.tokenizer else {**values, **self.objective.huggingface_config(self.classes)}

    @property
    def special_ids(self) -> dict[str, int]:
        return {} if self.tokenizer is None else self.tokenizer.special_ids


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder under a temporary name beside `target`: renamed when the block ends in order, removed otherwise."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            raise InputError(f"output={target} exists already: nothing is overwritten")
        os.rename(temporary, target)
    except OSError as error:
        raise InputError(f"output={target}: {error.strerror or error} {error.filename or ''}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _command(overrides: list[str]) -> int:
    config = compose_config("export", overrides, ExportConfig)
    report = export(config)
    print(f"largest difference of the outputs: {report['max_abs_difference']:.2e} (at most {report['tolerance']:.0e})")
    print(f"Hugging Face folder: {config.output}")
    return EXIT_DONE


def _write_generation_config(folder: Path, values: dict[str, Any]) -> None:
    """Where a text ends; only for models that generate."""
    if "eos_token_id" in values:
        keys = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        _write_json(folder / "generation_config.json", {key: values[key] for key in keys if key in values})


def _write_weights(folder: Path, source: Source, model: Any) -> None:
    from safetensors.torch import save_file

    parameters = model.state_dict()  # fixed positions are buffers
    entries = source.counterpart.weight_map(source.model_config, source.vocab_size)
    missing = {name for name, _ in model.named_parameters()} - {entry.ours for entry in entries}
    assert not missing, f"the weight map leaves out {sorted(missing)}"
    weights = {e.theirs: e.export(parameters[e.ours].detach()).clone().contiguous() for e in entries}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _prove_model(folder: Path, source: Source, model: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Raises InputError where transformers computes something else from the folder than our model."""
    import torch
    import transformers
    from safetensors.torch import save_file

    from pretraining.hub import parity

    (architecture,) = values["architectures"]
    assert architecture in source.family.architectures, architecture
    examples = parity.probes(source.family, source.model_config, source.vocab_size)
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
    """tokenizer.json and tokenizer_config.json. Raises InputError where the tokenizer read back from them treats an
    awkward text otherwise than ours."""
    from transformers import AutoTokenizer

    from data_pipeline.tokenizers.export import EDGE_CASE_TEXTS, convert, disagreements, rounds_ties, tokenizer_config

    convert(tokenizer).save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer, max_length))
    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    loaded.model_max_length = sys.maxsize  # no model reads these texts: transformers would warn that they are too long
    wrong = disagreements(_WithoutSpecials(loaded), tokenizer)
    if wrong:
        raise InputError(
            f"the exported tokenizer treats {len(wrong)} texts otherwise than the run's, "
            f"{', '.join(wrong[:5])} among them: nothing was exported"
        )
    return {
        "tokenizer_texts": len(EDGE_CASE_TEXTS),
        "tokenizer_order_of_equal_scores_differs": rounds_ties(tokenizer),
    }


def _write_processor(folder: Path, source: Source) -> None:
    """How transformers makes of an image what an evaluation sees."""
    _write_json(
        folder / "preprocessor_config.json", source.objective.huggingface_processor(source.model_config.image_size)
    )


class _WithoutSpecials:
    """A transformers tokenizer without special tokens added or shown."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
