"""`model.init_from`: pretraining starts from the weights of a Hugging Face folder of the same family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from data_pipeline.common.errors import InputError
from data_pipeline.common.json_files import read_json
from data_pipeline.tokenizers.export import disagreements, special_tokens
from data_pipeline.tokenizers.special_tokens import ALL, exported_sentinel
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.hub.parity import COUNTERPARTS
from pretraining.hub.weight_map import WeightMap
from pretraining.parallel.fragments import Box
from pretraining.parallel.layers import PlainLayers, box_of

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_BASES = ("bert", "model", "transformer", "vit")  # what a family's base model is called within the others
_HEADS = ("head.", "pair_head.")  # ours; a folder may lack them
FIXED_TOLERANCE = 1e-5


class HuggingFaceFolder:
    """A folder whose config, weights' names and shapes, and tokenizer agree with the model: checked when it is made.

    Raises InputError with every fault. Reads JSON and safetensors only.
    """

    def __init__(self, folder: str, model_config: Any, vocab_size: int, tokenizer: Tokenizer | None) -> None:
        self.folder, self.vocab_size = Path(folder), vocab_size
        family = COUNTERPARTS[model_config.name].load()
        values = read_json(self.folder / "config.json", key="model.init_from")
        self.stored, faults = _stored_tensors(self.folder)
        free = {"vocab_size"} if "classifier.weight" in self.stored else {"vocab_size", "num_classes"}
        misfits = _config_faults(family, values, model_config, vocab_size, free)
        their_size = values.get("vocab_size", vocab_size)
        self.rows, wrong = _rows(self.folder / "tokenizer.json", tokenizer, vocab_size, their_size)
        self.entries: list[WeightMap] = []
        self.new_heads: list[str] = []
        if not faults and not misfits:
            entries = family.weight_map(model_config, vocab_size)
            wrong += self._weight_faults(entries, model_config.build(vocab_size, MetaLayers()), their_size)
        if faults := faults + misfits + wrong:
            raise InputError(f"model.init_from={folder} does not fit: " + "; ".join(faults))

    def notes(self) -> list[str]:
        """What a user has to know of the start."""
        found = []
        if any(entry.by_token for entry in self.entries):
            new = self.vocab_size - len(self.rows)
            found.append(
                f"model.init_from={self.folder}: {len(self.rows)} rows of the vocabulary are taken from it, "
                f"{new} are new"
            )
        if self.new_heads:
            found.append(
                f"warning: model.init_from={self.folder} lacks {', '.join(self.new_heads)}: these begin as a "
                "new model's"
            )
        return found

    def load_into(self, model: Any) -> None:
        """Overwrites the parameters of `model`, or this rank's part of them; heads and rows of the vocabulary that the
        folder lacks stay as they are. Fixed positions are the folder's already."""
        parameters = dict(model.named_parameters())
        opened = {file: safe_open(str(file), framework="pt") for file, _ in self.stored.values()}
        with torch.no_grad():
            for entry in (entry for entry in self.entries if entry.ours in parameters):
                found = opened[self.stored[entry.theirs][0]].get_tensor(entry.theirs).float()
                shape, box = box_of(parameters[entry.ours], model.layers.size, model.layers.rank)
                if entry.by_token:
                    self._copy_rows(found, parameters[entry.ours], box.offset[0])
                else:
                    part = entry.restore(found)[box.slices_of(Box((0,) * len(shape), shape))]
                    parameters[entry.ours].copy_(part)

    def _copy_rows(self, found: Tensor, parameter: Tensor, first: int) -> None:
        """parameter: our rows from `first` on."""
        ours, theirs = torch.tensor(list(self.rows.items())).T
        here = (ours >= first) & (ours < first + len(parameter))
        parameter[ours[here] - first] = found[theirs[here]].to(parameter)

    def _weight_faults(self, entries: list[WeightMap], model: Any, their_size: int) -> list[str]:
        """What the folder's tensors lack for `model`, which holds every tensor whole. Sets `entries`, whose names are
        now those of the folder, and `new_heads`."""
        missing = {name for name, _ in model.named_parameters()} - {entry.ours for entry in entries}
        assert not missing, f"the weight map leaves out {sorted(missing)}"
        spelled = [(e, next((n for n in _spellings(e.theirs) if n in self.stored), None)) for e in entries]
        self.entries = [replace(entry, theirs=name) for entry, name in spelled if name is not None]
        absent = [entry for entry, name in spelled if name is None]
        self.new_heads = [entry.theirs for entry in absent if entry.ours.startswith(_HEADS)]
        if lacking := [entry.theirs for entry in absent if not entry.ours.startswith(_HEADS)]:
            return [f"it lacks the weights {_few(sorted(lacking))}"]
        return self._shape_faults(model, their_size) or self._position_faults(dict(model.named_buffers()))

    def _shape_faults(self, model: Any, their_size: int) -> list[str]:
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        wrong = []
        for entry in self.entries:
            wanted = list(entry.export(tensors[entry.ours].to("meta")).shape)
            wanted[:1] = [their_size] if entry.by_token else wanted[:1]
            found = self.stored[entry.theirs][1]
            if found != wanted:
                wrong.append(f"{entry.theirs} is {found}, the model's is {wanted}")
        return [_few(wrong)] if wrong else []

    def _position_faults(self, buffers: dict[str, Tensor]) -> list[str]:
        """Fixed positions of ours that the folder has otherwise: checkpoints don't hold them."""
        faults = []
        for entry in (entry for entry in self.entries if entry.ours in buffers):
            with safe_open(str(self.stored[entry.theirs][0]), framework="pt") as opened:
                found = opened.get_tensor(entry.theirs)
            ours = entry.export(buffers[entry.ours]).to(found.dtype)  # as that rounds
            difference = float((found.float() - ours.float()).abs().max())
            if not difference <= FIXED_TOLERANCE:
                faults.append(
                    f"its {entry.theirs} differ by up to {difference:.2g} from the fixed ones of "
                    "model.positions=sinusoidal, which a checkpoint would bring back"
                )
        return faults


class MetaLayers(PlainLayers):
    """For a model that tells its shapes."""

    def column(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        return nn.Linear(in_features, out_features, bias, device="meta")

    row = column

    def embedding(self, num_embeddings: int, features: int) -> nn.Module:
        return nn.Embedding(num_embeddings, features, device="meta")

    def parameter(self, shape: tuple[int, ...], dim: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(shape, device="meta"))


def _stored_tensors(folder: Path) -> tuple[dict[str, tuple[Path, list[int]]], list[str]]:
    """-> (each tensor's file and shape, faults of the files)."""
    found: dict[str, tuple[Path, list[int]]] = {}
    faults = []
    for file in _weight_files(folder):
        try:
            with safe_open(str(file), framework="pt") as opened:
                found |= {name: (file, opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except FileNotFoundError:
            faults.append(f"{file.name}, which {_INDEX} names, is missing")
        except (OSError, SafetensorError) as error:
            faults.append(f"{file.name} is not a safetensors file that can be read ({error})")
    return found, faults


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        table = read_json(folder / _INDEX, key="model.init_from").get("weight_map")
        if not isinstance(table, dict):
            raise InputError(f"model.init_from: {folder / _INDEX} has no weight_map")
        return sorted({folder / Path(str(file)).name for file in table.values()})
    if not (folder / _WEIGHTS).is_file():
        raise InputError(
            f"model.init_from={folder}: {_WEIGHTS} is missing (weights are read from safetensors only, "
            "never from a pickle)"
        )
    return [folder / _WEIGHTS]


def _spellings(name: str) -> list[str]:
    """What a tensor may be called: without the base model's name in that model's own folder, with gamma and beta in an
    old one, and as transformers 5 writes the blocks of MAE's decoder."""
    base, _, rest = name.partition(".")
    names = [name, rest] if base in _BASES else [name]
    old = [
        each.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for each in names
    ]
    return [*names, *old, name.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")]


def _config_faults(family: Any, values: dict[str, Any], model_config: Any, outputs: int, free: set[str]) -> list[str]:
    """Our keys, `free` apart, that the folder's config.json contradicts. Ours go the way through their form as well,
    so that null and its default are one."""
    ids = dict.fromkeys(("pad", "bos", "eos", "unk", "mask", "cls", "sep"), 0)
    try:
        theirs = family.from_huggingface_config(values)
        ours = family.from_huggingface_config(family.huggingface_config(model_config, outputs, ids))
    except InputError as error:
        return [str(error)]
    except KeyError as error:
        return [f"its config.json lacks {error}"]
    return [
        f"model.{key} is {ours[key]}, the folder's is {theirs[key]}"
        for key in ours
        if key not in free and ours[key] != theirs[key]
    ]


def _rows(path: Path, tokenizer: Tokenizer | None, our_size: int, their_size: int) -> tuple[dict[int, int], list[str]]:
    """-> (our id -> the row of the folder's vocabulary that it takes, faults).

    By the folder's tokenizer.json, whose ids have to mean what they mean to the prepared data: told by texts on which
    tokenizers differ. Without one, every row is taken.
    """
    if tokenizer is None or not path.is_file():
        hint = (
            ""
            if tokenizer is None
            else " (with its tokenizer.json in the folder, the rows of pieces that both know would be taken)"
        )
        fault = f"its vocabulary has {their_size} entries, that of the prepared data {our_size}{hint}"
        return {i: i for i in range(our_size)}, [] if our_size == their_size else [fault]
    theirs = Tokenizer.from_file(str(path))
    ids_alone = SimpleNamespace(encode=theirs.encode, decode=tokenizer.decode)  # decoders differ around unknown pieces
    wrong = disagreements(ids_alone, tokenizer)
    told = [f"its tokenizer.json treats {wrong[0]} otherwise than the prepared data's tokenizer"] if wrong else []
    return _common_rows(tokenizer, theirs, their_size), told


def _common_rows(tokenizer: Tokenizer, theirs: Any, their_size: int) -> dict[int, int]:
    """A tokenizer may know more ids than the model has rows for."""
    rows = {name: i for name, i in theirs.pieces.items() if i < their_size}
    found = {i: next((rows[name] for name in names if name in rows), None) for i, names in _names(tokenizer).items()}
    return {i: row for i, row in found.items() if row is not None}


def _names(tokenizer: Tokenizer) -> dict[int, tuple[str, ...]]:
    """What each id of ours may be called in another tokenizer.json: first as our own export calls it."""
    names = {i: (piece,) for piece, i in tokenizer.pieces.items()}
    others = {tokenizer.special_ids[token.role]: token.found_as for token in ALL}
    others |= {i: (exported_sentinel(n),) for n, i in enumerate(tokenizer.sentinels)}
    return names | {i: (name, *others.get(i, ())) for i, name in special_tokens(tokenizer).items()}


def _few(items: list[str]) -> str:
    return ", ".join(items[:5]) + (" and more" if len(items) > 5 else "")
