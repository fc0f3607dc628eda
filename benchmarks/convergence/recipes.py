"""What both sides of a comparison share, and how large it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """AdamW with a linear warm-up and a cosine down to final_lr; gradients clipped at norm 1; no dropout.

    prepare, train: overrides of pretrain-data and pretrain. batch: sequences or images of one step. text: the
    comparison in words, for the table.
    """

    family: str
    text: str
    prepare: tuple[str, ...]
    train: tuple[str, ...]
    steps: int
    batch: int
    lr: float
    final_lr: float
    betas: tuple[float, float]
    warmup_steps: int = 100
    weight_decay: float = 0.1
    eps: float = 1e-8
    grad_clip: float = 1.0


RECIPES = {
    # karpathy/nanoGPT, README.md: train_shakespeare_char.py on a CPU
    "gpt": Recipe(
        family="gpt",
        text="characters of one text in some 20 documents, 4 layers of 128, context 64",
        prepare=(
            "tokenizer.model_type=char",
            "tokenizer.vocab_size=512",
            "corpus.max_document_bytes=56000",
            "valid_fraction=0.1",
        ),
        train=(
            "model=gpt_debug",
            "objective=causal_lm",
            "model.num_layers=4",
            "model.hidden_size=128",
            "model.num_heads=4",
            "model.max_seq_len=64",
        ),
        steps=2000,
        batch=12,
        lr=1e-3,
        final_lr=1e-4,
        betas=(0.9, 0.99),
    ),
    "bert": Recipe(
        family="bert",
        text="2 layers of 128, 64 tokens, masked tokens without pairs",
        prepare=("tokenizer.vocab_size=1024", "valid_fraction=0.05"),
        train=(
            "model=bert_debug",
            "objective=masked_lm",
            "objective.pairing=none",
            "model.num_layers=2",
            "model.hidden_size=128",
            "model.num_heads=4",
            "model.max_seq_len=64",
        ),
        steps=800,
        batch=32,
        lr=2e-3,
        final_lr=0.0,
        betas=(0.9, 0.98),
    ),
    "t5": Recipe(
        family="t5",
        text="2 + 2 layers of 128, 128 tokens",
        prepare=("tokenizer.vocab_size=1024", "valid_fraction=0.05"),
        train=(
            "model=t5_debug",
            "objective=span_corruption",
            "model.num_layers=2",
            "model.hidden_size=128",
            "model.num_heads=4",
            "model.head_dim=32",
            "model.max_seq_len=128",
        ),
        steps=600,
        batch=16,
        lr=2e-3,
        final_lr=0.0,
        betas=(0.9, 0.98),
    ),
    "vit": Recipe(
        family="vit",
        text="photos of ten classes, 4 layers of 64, 32 pixels",
        prepare=("corpus=images", "valid_fraction=0.25"),
        train=(
            "model=vit_debug",
            "objective=image_classification",
            "model.num_layers=4",
            "model.hidden_size=64",
            "model.num_heads=4",
            "model.image_size=32",
            "model.patch_size=4",
        ),
        steps=500,
        batch=64,
        lr=1e-3,
        final_lr=0.0,
        betas=(0.9, 0.98),
    ),
}
