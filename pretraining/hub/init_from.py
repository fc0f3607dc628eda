"""`model.init_from`: pretraining starts from the weights of a Hugging Face folder of the same family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import exists, inside, is_folder, open_file
from data_pipeline.common.json_files import read_json
from data_pipeline.tokenizers.export import disagreements, special_tokens
from data_pipeline.tokenizers.special_tokens import ALL, exported_sentinel
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.hub.new_rows import Means, fill_means, old_pieces
from pretraining.models.base import Model
from pretraining.models.huggingface_map import HuggingFaceFamily, Values
from pretraining.models.registry import huggingface_families
from pretraining.models.weight_map import WeightMap
from pretraining.parallel.fragments import Box
from pretraining.parallel.layers import box_of

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
FIXED_TOLERANCE = 1e-5  # largest difference of a fixed position


class HuggingFaceFolder:
    """A folder whose config, weights' names and shapes, and tokenizer fit the model; checked when it is opened.

    model: of these shapes, with the heads that will be trained (models.shapes.shapes_of). outputs: the size of the
    vocabulary or the number of classes of the prepared data. new_rows: see TextConfig. part: of a model that has
    several folders, the one within the first; the first opens the others. Raises InputError with every problem. Reads
    JSON and safetensors only, never a pickle.
    """

    def __init__(
        self,
        folder: str,
        model: Model,
        outputs: int,
        tokenizer: Tokenizer | None,
        new_rows: str | None = None,
        part: str = "",
    ) -> None:
        self.folder, self.vocab_size = Path(folder), outputs
        _refuse_own(self.folder)
        families = huggingface_families(model.config.name, model.config)
        family, companions = families[part], [] if part else [name for name in families if name]
        self.companions = [
            HuggingFaceFolder(str(self.folder / name), model, outputs, tokenizer, new_rows, name) for name in companions
        ]
        values = read_json(self.folder / "config.json", key="model.init_from")
        self.stored, problems = _stored_tensors(self.folder)
        free = {"vocab_size"} if "classifier.weight" in self.stored else {"vocab_size", "num_classes"}
        problems += _config_problems(family, values, model, free)
        their_size = values.get("vocab_size", outputs)
        if not isinstance(their_size, int) or isinstance(their_size, bool):
            raise InputError(f"model.init_from: {self.folder / 'config.json'}: vocab_size={their_size!r} is no number")
        self.means: Means = {}
        if new_rows is not None and tokenizer is not None:
            self.rows, misfits = self._rows_of_another(tokenizer, their_size, new_rows)
        else:
            self.rows, misfits = _rows(self.folder, tokenizer, outputs, their_size)
        self.entries: list[WeightMap] = []
        self.new_heads: list[str] = []
        self.not_finite: list[str] = []  # of the tensors that load_into took anyway
        if not problems:
            misfits += self._weight_problems(family, model, their_size)
        _require_whole(model, families)
        if problems := problems + misfits:
            raise InputError(f"model.init_from={folder} does not fit: " + "; ".join(problems))

    def notes(self) -> list[str]:
        """What a user should know about the start."""
        found = []
        if any(entry.by_token for entry in self.entries):
            new = self.vocab_size - len(self.rows)
            found.append(
                f"model.init_from={self.folder}: {len(self.rows)} rows of the vocabulary are taken from it, "
                f"{new} are new" + (f", {len(self.means)} of them means of rows" if self.means else "")
            )
        if self.new_heads:
            found.append(
                f"warning: model.init_from={self.folder} lacks {', '.join(self.new_heads)}: these start as a "
                "new model's"
            )
        if self.not_finite:
            found.append(
                f"warning: model.init_from={self.folder}: {', '.join(self.not_finite)} hold values that are not "
                "finite; they are loaded, as train.load_not_finite=true asks"
            )
        return found + [note for companion in self.companions for note in companion.notes()]

    def load_into(self, model: Model, load_not_finite: bool = False) -> None:
        """Overwrites the parameters of `model`, or this rank's part of them; heads and rows of the vocabulary that the
        folder lacks stay as they are. Fixed positions were compared and agree already. Raises InputError for values
        that are not finite, unless load_not_finite."""
        for companion in self.companions:  # first: what stands in several folders is taken from the model's own
            companion.load_into(model, load_not_finite)
        parameters = dict(model.named_parameters())
        opened = {file: safe_open(str(file), framework="pt") for file, _ in self.stored.values()}
        with torch.no_grad():
            for entry in (entry for entry in self.entries if entry.ours in parameters):
                found = opened[self.stored[entry.theirs][0]].get_tensor(entry.theirs).float()
                if not torch.isfinite(found).all():
                    self.not_finite.append(entry.theirs)
                    if not load_not_finite:
                        raise InputError(
                            f"model.init_from={self.folder}: {entry.theirs} holds values that are not finite"
                        )
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
        fill_means(self.means, found, parameter, first)

    def _rows_of_another(
        self, tokenizer: Tokenizer, their_size: int, new_rows: str
    ) -> tuple[dict[int, int], list[str]]:
        """As _rows, for a tokenizer that need not be the folder's. Sets `means`."""
        theirs = _their_tokenizer(self.folder)
        if theirs is None:
            return {}, ["it has no tokenizer.json, by which model.new_rows finds the rows of pieces"]
        rows = _common_rows(tokenizer, theirs, their_size)
        self.means = old_pieces(tokenizer, theirs, their_size, rows) if new_rows == "mean" else {}
        return rows, []

    def _weight_problems(self, family: HuggingFaceFamily[Any], model: Model, their_size: int) -> list[str]:
        """What the folder's tensors lack for `model`. Sets `entries`, with the names as the folder spells them, and
        `new_heads`, the heads that the folder lacks."""
        entries = family.weight_map(model)
        found = [(e, next((n for n in family.spellings(e.theirs) if n in self.stored), None)) for e in entries]
        self.entries = [replace(entry, theirs=name) for entry, name in found if name is not None]
        absent = [entry for entry, name in found if name is None]
        self.new_heads = [entry.theirs for entry in absent if entry.ours.split(".")[0] in model.head_names]
        if lacking := sorted({entry.theirs for entry in absent} - set(self.new_heads)):
            return [f"it lacks the weights {_few(lacking)}"]
        return self._shape_problems(model, their_size) or self._position_problems(dict(model.named_buffers()))

    def _shape_problems(self, model: Model, their_size: int) -> list[str]:
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        wrong = []
        for entry in self.entries:
            wanted = list(entry.export(tensors[entry.ours].to("meta")).shape)
            wanted[:1] = [their_size] if entry.by_token else wanted[:1]
            found = self.stored[entry.theirs][1]
            if entry.tiled_from is not None and entry.tiled_from < found[0] < wanted[0]:
                wanted[:1] = found[:1]
            if found != wanted:
                wrong.append(f"{entry.theirs} is {found}, the model's is {wanted}")
        return [_few(wrong)] if wrong else []

    def _position_problems(self, buffers: dict[str, Tensor]) -> list[str]:
        """Fixed tensors, positions for example, must be the folder's: no checkpoint holds them, so that a resume would
        bring ours back."""
        problems = []
        for entry in (entry for entry in self.entries if entry.ours in buffers):
            with safe_open(str(self.stored[entry.theirs][0]), framework="pt") as opened:
                found = opened.get_tensor(entry.theirs)
            ours = entry.export(buffers[entry.ours]).to(found.dtype)  # rounded as the folder's are
            difference = float((found.float() - ours.float()).abs().max())
            if not difference <= FIXED_TOLERANCE:
                problems.append(
                    f"its {entry.theirs} differ by up to {difference:.2g} from the fixed ones of {entry.fixed_by}, "
                    "which a resumed run would have again"
                )
        return problems


def _require_whole(model: Model, families: Mapping[str, HuggingFaceFamily[Any]]) -> None:
    mapped = {entry.ours for family in families.values() for entry in family.weight_map(model)}
    missing = {name for name, _ in model.named_parameters()} - mapped
    assert not missing, f"the weight map leaves out {sorted(missing)}"


def _refuse_own(folder: Path) -> None:
    """A checkpoint, or a run, of ours has to leave through pretrain-export first: only then is it known to be equal to
    what transformers reads."""
    if not is_folder(folder):
        return  # nor is there a config.json
    of_run = any((folder / name / "manifest.json").is_file() for name in (".", *_checkpoints(folder)))
    if of_run and not (folder / "config.json").is_file():
        raise InputError(
            f"model.init_from={folder} is a checkpoint of pretrain, not a Hugging Face folder; "
            f"pretrain-export checkpoint={folder} output=EXPORTED makes one of it, for model.init_from=EXPORTED"
        )


def _checkpoints(folder: Path) -> list[str]:
    return [
        f.relative_to(folder).as_posix() for parent in (folder, folder / "checkpoints") for f in parent.glob("step_*")
    ]


def _stored_tensors(folder: Path) -> tuple[dict[str, tuple[Path, list[int]]], list[str]]:
    """-> (name -> the tensor's file and shape, problems of the files)."""
    found: dict[str, tuple[Path, list[int]]] = {}
    problems = []
    for file in _weight_files(folder):
        try:
            open_file(file).close()  # safetensors would wait for a pipe, where no signal reaches it
            with safe_open(str(file), framework="pt") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        except FileNotFoundError:
            problems.append(f"{file.name}, which {_INDEX} names, is missing")
            continue
        except (OSError, SafetensorError) as error:
            problems.append(f"{file.name} is not a readable safetensors file ({error})")
            continue
        other = [name for name, part in slices.items() if part.get_dtype() not in _FLOATS]
        found |= {name: (file, part.get_shape()) for name, part in slices.items() if name not in other}
    return found, problems


def _weight_files(folder: Path) -> list[Path]:
    if exists(folder / _INDEX):
        table = read_json(folder / _INDEX, key="model.init_from").get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
            raise InputError(f"model.init_from: {folder / _INDEX} has no weight_map of tensors to files")
        try:
            return [Path(inside(folder, name)) for name in sorted(set(table.values()))]
        except ValueError as error:
            raise InputError(f"model.init_from: {folder / _INDEX}: {error}") from error
    if not exists(folder / _WEIGHTS):
        raise InputError(
            f"model.init_from={folder}: {_WEIGHTS} is missing (weights are read from safetensors only, "
            "never from a pickle)"
        )
    return [folder / _WEIGHTS]


def _config_problems(family: HuggingFaceFamily[Any], values: Values, model: Model, free: set[str]) -> list[str]:
    """Our keys, except for `free`, that the folder's config.json contradicts."""
    ids = dict.fromkeys(("pad", "bos", "eos", "unk", "mask", "cls", "sep"), 0)
    try:
        # Ours go through their form and back, so that null and the value that it stands for are the same.
        ours = family.from_huggingface_config(family.huggingface_config(model, ids))
    except InputError as error:
        return [str(error)]
    try:
        theirs = family.from_huggingface_config(values)
    except InputError as error:
        return [str(error)]
    except KeyError as error:
        return [f"its config.json lacks {error}"]
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:  # a value of it may be of any kind
        return [f"its config.json is broken ({str(error)[:200]})"]
    return [
        f"model.{key} is {ours[key]}, the folder's is {theirs[key]}"
        for key in ours
        if key not in free and ours[key] != theirs[key]
    ]


def _their_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer.json; or bytes, for which ByT5's folders have no file but a name."""
    if exists(folder / "tokenizer.json"):
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings = folder / "tokenizer_config.json"
    named = read_json(settings, key="model.init_from").get("tokenizer_class") if exists(settings) else None
    return Tokenizer.of_bytes() if named == "ByT5Tokenizer" else None


def _rows(
    folder: Path, tokenizer: Tokenizer | None, our_size: int, their_size: int
) -> tuple[dict[int, int], list[str]]:
    """-> (our id -> the row of the folder's vocabulary that it takes, problems).

    Rows are matched by the folder's tokenizer, which must encode texts as the prepared data's does: checked on texts
    on which tokenizers differ. Without one, every row is taken.
    """
    theirs = None if tokenizer is None else _their_tokenizer(folder)
    if tokenizer is None or theirs is None:
        hint = (
            ""
            if tokenizer is None
            else " (with its tokenizer.json in the folder, the rows of pieces that both know would be taken)"
        )
        problem = f"its vocabulary has {their_size} entries, that of the prepared data has {our_size}{hint}"
        return {i: i for i in range(our_size)}, [] if our_size == their_size else [problem]
    encoder = SimpleNamespace(encode=theirs.encode, decode=tokenizer.decode)  # decoders differ around unknown pieces
    wrong = disagreements(encoder, tokenizer)
    problems = [
        f"its tokenizer.json encodes {text} differently from the prepared data's tokenizer; "
        "model.new_rows=mean|normal lets a run have another"
        for text in wrong[:1]
    ]
    return _common_rows(tokenizer, theirs, their_size), problems


def _common_rows(tokenizer: Tokenizer, theirs: Tokenizer, their_size: int) -> dict[int, int]:
    # a tokenizer may know more ids than the model has rows for
    rows = {name: i for name, i in theirs.pieces.items() if i < their_size}
    found = {i: next((rows[name] for name in names if name in rows), None) for i, names in _names(tokenizer).items()}
    return {i: row for i, row in found.items() if row is not None}


def _names(tokenizer: Tokenizer) -> dict[int, tuple[str, ...]]:
    """Under which names another tokenizer.json may have each id of ours, that of our own export first."""
    names = {i: (piece,) for piece, i in tokenizer.pieces.items()}
    others = {tokenizer.special_ids[token.role]: token.found_as for token in ALL}
    others |= {i: (exported_sentinel(n),) for n, i in enumerate(tokenizer.sentinels)}
    return names | {i: (name, *others.get(i, ())) for i, name in special_tokens(tokenizer).items()}


def _few(items: list[str]) -> str:
    return ", ".join(items[:5]) + (" and more" if len(items) > 5 else "")
