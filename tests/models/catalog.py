"""docs/models.md: every preset with its role, objectives, layouts, size and paper. `make models` writes it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.common.compose import compose_config
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.config import RunConfig
from pretraining.engines.config import PROVEN_TENSOR_PARALLEL
from pretraining.models.registry import FAMILIES
from pretraining.models.shapes import shapes_of
from pretraining.models.vocabulary import Vocabulary
from pretraining.objectives.registry import build_objective, objectives_for
from pretraining.run.prepared import sample_spec
from tests.helpers import ROOT, prepare

PAGE = ROOT / "docs" / "models.md"
CLASSES = 1000  # of ImageNet
# Entries of the published vocabulary, by how the preset's name begins: the longest fitting one counts
VOCABULARIES = {
    "albert": 30000,
    "bart": 50265,
    "bert": 30522,
    "bigbird": 50358,
    "byt5": 384,
    "distilbert": 30522,
    "electra": 30522,
    "elmo": 793471,
    "gpt1": 40478,
    "gpt2": 50257,
    "gpt3": 50257,
    "llama": 32000,
    "longformer": 50265,
    "macbert": 21128,
    "mbart": 250027,
    "mbert": 119547,
    "mt5": 250112,
    "reformer": 32000,  # the paper's read bytes
    "roberta": 50265,
    "t5": 32100,
    "transformer": 37000,
    "transformer_xl": 267735,
    "unilm": 28996,
    "xlm": 95000,
    "xlm_roberta": 250002,
    "xlnet": 32000,
}
# By family, where the first objective that fits has other heads than the published ones, or other lengths
OBJECTIVES = {
    "albert": ["objective=albert"],
    "roberta": ["objective=roberta"],
    "transformer_xl": ["objective=recurrent_lm", "data.seq_len=320"],
    "xlm_roberta": ["objective=roberta"],
}
HEAD = """# The models

Every preset of `model=`, the objectives that fit it, and the layouts that it is proven on ([families](parity.md),
[relatives](parity_relatives.md), [classes of transformers](parity_adapter.md)); others are refused by name. Parameters
are counted as published: with the paper's vocabulary or 1,000 classes, without padding, with the heads of the first
objective or of the published one. `make models` writes this page from the code.

| model | role | objectives | layouts | parameters | paper |
| --- | --- | --- | --- | --- | --- |
"""


def page(tokenizer: Tokenizer) -> str:
    """tokenizer: any; only sizes are looked at."""
    return HEAD + "".join(_row(name, tokenizer) for name in presets())


def presets() -> list[str]:
    """Of published sizes, by family and then by size."""
    names = [f.stem for f in sorted((ROOT / "conf/model").glob("*.yaml")) if f.stem != "huggingface"]
    names = [name for name in names if not name.endswith("_debug")]
    families = list(FAMILIES)
    return sorted(names, key=lambda name: families.index(_family(name)))


def paper(preset: str) -> str:
    """What the preset's file, or the one that it is derived from, states after "# Paper:"."""
    text = _text(preset)
    stated = [line.removeprefix("# Paper:").strip() for line in text.splitlines() if line.startswith("# Paper:")]
    return stated[0] if stated else paper(yaml.safe_load(text)["defaults"][0])


def _text(preset: str) -> str:
    return (ROOT / "conf/model" / f"{preset}.yaml").read_text()


def _family(preset: str) -> str:
    values = yaml.safe_load(_text(preset))
    return str(values["name"]) if "name" in values else _family(values["defaults"][0])


def _row(preset: str, tokenizer: Tokenizer) -> str:
    model = compose_config("pretrain", [f"model={preset}", "data.path=none"], RunConfig).model
    roles = model.roles(FAMILIES[model.name].roles)
    objectives = [o for o in objectives_for(roles) if o != "translation_lm" or model.packs_documents]
    objective = OBJECTIVES.get(model.name, [f"objective={objectives[0]}"])
    if (model.name, objectives[0]) == ("huggingface", "masked_lm"):
        objective = ["objective=masked_lm", "objective.pairing=none"]  # few of transformers' classes have another head
    config = compose_config("pretrain", [f"model={preset}", *objective, "data.path=none"], RunConfig)
    cells = [
        f"`{preset}`",
        ", ".join(sorted(roles)),
        ", ".join(objectives),
        ", ".join(_layouts(config)),
        f"{_parameters(config, preset, tokenizer) / 1e6:,.1f}M",
        paper(preset),
    ]
    return f"| {' | '.join(cells)} |\n"


def _layouts(config: RunConfig) -> list[str]:
    """Those of one process, which each model has, left out."""

    def proven(engine: str, stage: int, parts: int) -> bool:
        refused = config.model.layout_problems(engine, stage, parts)
        return not refused and not any(size % parts for size in config.model.split_over_ranks().values())

    stages = [str(stage) for stage in (1, 2, 3) if proven("deepspeed", stage, 1)]
    tensor = [str(parts) for parts in PROVEN_TENSOR_PARALLEL["megatron"][1:] if proven("megatron", 0, parts)]
    return ["DDP", *([f"ZeRO {'/'.join(stages)}"] if stages else []), *([f"TP {'/'.join(tensor)}"] if tensor else [])]


def _parameters(config: RunConfig, preset: str, tokenizer: Tokenizer) -> int:
    if config.data_kind == "images":
        spec = sample_spec(config, None, ["class"] * CLASSES)
        vocabulary = Vocabulary(classes=CLASSES)
    else:
        spec = sample_spec(config, tokenizer, ())
        vocabulary = Vocabulary(_published_vocabulary(preset), tokenizer.special_ids)
    objective: Any = build_objective(config.objective, spec)
    return shapes_of(config.model, vocabulary, objective).published_parameters()


def _published_vocabulary(preset: str) -> int:
    return VOCABULARIES[max((start for start in VOCABULARIES if preset.startswith(start)), key=len)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "text.txt"
        source.write_text((ROOT / "README.md").read_text())
        data = Path(folder) / "data"
        options = ("tokenizer.vocab_size=400", "corpus.max_document_bytes=400", "num_workers=1")
        assert prepare(f"corpus.inputs=[{source}]", f"output={data}", *options) == 0
        PAGE.write_text(page(Tokenizer.load(data / "tokenizer")))


if __name__ == "__main__":
    main()
