"""The shapes and options of every model family, checked before torch is imported.

A family's module stands in a file of its own (see pretraining.models.MODELS); its config stands here so that a
config error comes at once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from data_pipeline.config import Fraction, Positive, PositiveFloat, configclass

VOCABULARY_MULTIPLE = 128


def padded_vocabulary(vocab_size: int) -> int:
    """Rounded up so that it divides by any tensor-parallel size: a checkpoint fits every layout."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


@configclass
class GPTConfig:
    """A decoder. The defaults of the options are GPT-2's; the others make it a Llama-style one.

    vocab_size: null takes that of the prepared data. num_kv_heads: null means num_heads; fewer is grouped-query
    attention (Ainslie et al. 2023). intermediate_size: null means 4 x hidden_size. init_from: a Hugging Face folder
    whose weights a new run starts from.
    """

    name: Literal["gpt"]
    num_layers: Positive
    hidden_size: Positive
    num_heads: Positive
    max_seq_len: Positive
    vocab_size: Positive | None = None
    num_kv_heads: Positive | None = None
    intermediate_size: Positive | None = None
    positions: Literal["learned", "rotary"] = "learned"
    rotary_base: PositiveFloat = 10000.0
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: PositiveFloat = 1e-5
    activation: Literal["gelu_tanh", "swiglu"] = "gelu_tanh"
    bias: bool = True
    tied_head: bool = True
    dropout: Fraction = 0.0
    initializer_range: PositiveFloat = 0.02
    activation_checkpointing: bool = False
    init_from: str | None = None

    @property
    def mlp_size(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    def faults(self) -> list[str]:
        faults = head_faults(self.hidden_size, self.num_heads)
        if self.num_heads % self.kv_heads:
            faults.append(f"model.num_kv_heads={self.kv_heads} does not divide model.num_heads={self.num_heads}")
        if self.positions == "rotary" and not faults and (self.hidden_size // self.num_heads) % 2:
            faults.append(f"model.positions=rotary needs an even head size, not {self.hidden_size // self.num_heads}")
        return faults

    def split_over_ranks(self) -> dict[str, int]:
        """What tensor parallelism divides."""
        return {
            "model.num_heads": self.num_heads,
            "model.num_kv_heads": self.kv_heads,
            "model.intermediate_size": self.mlp_size,
        }

    def build(self, vocab_size: int, layers: Any) -> Any:
        """The torch module, its weights still empty."""
        from pretraining.models.gpt import GPT

        return GPT(self, vocab_size, layers)


@configclass
class BertConfig:
    """An encoder with two segments, a pooler, and heads for masked tokens and for pairs of segments.

    vocab_size and intermediate_size: as in GPTConfig. norm_position: post is the published one; pre normalises what
    enters a sublayer, and once more at the end (Xiong et al. 2020).
    """

    name: Literal["bert"]
    num_layers: Positive
    hidden_size: Positive
    num_heads: Positive
    max_seq_len: Positive
    vocab_size: Positive | None = None
    intermediate_size: Positive | None = None
    norm_position: Literal["post", "pre"] = "post"
    norm_eps: PositiveFloat = 1e-12
    dropout: Fraction = 0.0
    initializer_range: PositiveFloat = 0.02
    activation_checkpointing: bool = False
    init_from: str | None = None

    @property
    def mlp_size(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size

    def faults(self) -> list[str]:
        return head_faults(self.hidden_size, self.num_heads)

    def split_over_ranks(self) -> dict[str, int]:
        """What tensor parallelism divides."""
        return {"model.num_heads": self.num_heads, "model.intermediate_size": self.mlp_size}

    def build(self, vocab_size: int, layers: Any) -> Any:
        """The torch module, its weights still empty."""
        from pretraining.models.bert import BERT

        return BERT(self, vocab_size, layers)


@configclass
class T5Config:
    """An encoder and a decoder of the same shape. The defaults of the options are T5's (v1.0).

    max_seq_len: tokens that the encoder reads. num_layers: of each stack; num_decoder_layers: null means as many.
    head_dim: null means hidden_size / num_heads. tied_head: with it logits are scaled by hidden_size ** -0.5.
    T5 v1.1 has activation=gated_gelu and tied_head=false. vocab_size, intermediate_size, init_from: as in GPTConfig.
    """

    name: Literal["t5"]
    num_layers: Positive
    hidden_size: Positive
    num_heads: Positive
    max_seq_len: Positive
    vocab_size: Positive | None = None
    num_decoder_layers: Positive | None = None
    head_dim: Positive | None = None
    intermediate_size: Positive | None = None
    activation: Literal["relu", "gated_gelu"] = "relu"
    tied_head: bool = True
    relative_buckets: Positive = 32
    relative_max_distance: Positive = 128
    norm_eps: PositiveFloat = 1e-6
    dropout: Fraction = 0.0
    activation_checkpointing: bool = False
    init_from: str | None = None

    @property
    def mlp_size(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def decoder_layers(self) -> int:
        return self.num_decoder_layers or self.num_layers

    @property
    def attention_head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    def faults(self) -> list[str]:
        faults = [] if self.head_dim else head_faults(self.hidden_size, self.num_heads)
        if self.relative_buckets % 4 or self.relative_max_distance <= self.relative_buckets // 2:
            faults.append(
                f"model.relative_buckets={self.relative_buckets} must be a multiple of 4, and half of it "
                f"less than model.relative_max_distance={self.relative_max_distance}"
            )
        return faults

    def split_over_ranks(self) -> dict[str, int]:
        """What tensor parallelism divides."""
        return {"model.num_heads": self.num_heads, "model.intermediate_size": self.mlp_size}

    def build(self, vocab_size: int, layers: Any) -> Any:
        """The torch module, its weights still empty."""
        from pretraining.models.t5 import T5

        return T5(self, vocab_size, layers)


class PatchGrid(NamedTuple):
    """How an image is cut: sides of image and patch in pixels."""

    image_size: int
    patch_size: int

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@configclass
class VisionConfig:
    """What the vision families share: square images of image_size x image_size pixels in patches.

    intermediate_size: null means 4 x hidden_size. drop_path: the rate of the last block, growing from 0 at the first
    (stochastic depth, Huang et al. 2016).
    """

    name: str
    num_layers: Positive
    hidden_size: Positive
    num_heads: Positive
    image_size: Positive
    patch_size: Positive
    intermediate_size: Positive | None = None
    positions: Literal["learned", "sinusoidal"] = "learned"
    norm_eps: PositiveFloat = 1e-6
    dropout: Fraction = 0.0
    drop_path: Fraction = 0.0
    activation_checkpointing: bool = False
    init_from: str | None = None

    @property
    def mlp_size(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def grid(self) -> PatchGrid:
        return PatchGrid(self.image_size, self.patch_size)

    def split_over_ranks(self) -> dict[str, int]:
        """What tensor parallelism divides."""
        return {"model.num_heads": self.num_heads, "model.intermediate_size": self.mlp_size}

    @property
    def length(self) -> int:
        """Of the sequence that the first block sees."""
        return self.grid.patches + 1

    def faults(self) -> list[str]:
        faults = head_faults(self.hidden_size, self.num_heads)
        if self.image_size % self.patch_size:
            faults.append(f"model.patch_size={self.patch_size} does not divide model.image_size={self.image_size}")
        if self.positions == "sinusoidal" and self.hidden_size % 4:
            faults.append(
                f"model.positions=sinusoidal needs a model.hidden_size that divides by 4, not {self.hidden_size}"
            )
        return faults


@configclass
class ViTConfig(VisionConfig):
    """An image classifier. num_classes: null takes that of the prepared data. pooling: the class token's output, or
    the mean over the patches, without a class token (Beyer et al. 2022)."""

    name: Literal["vit"]
    num_classes: Positive | None = None
    pooling: Literal["cls", "mean"] = "cls"

    @property
    def length(self) -> int:
        return self.grid.patches + (self.pooling == "cls")

    def build(self, num_classes: int, layers: Any) -> Any:
        """The torch module, its weights still empty."""
        from pretraining.models.vit import ViT

        return ViT(self, num_classes, layers)


@configclass
class MAEConfig(VisionConfig):
    """A masked autoencoder (He et al. 2021): the encoder of a ViT with a class token, and a light decoder."""

    name: Literal["mae"]
    decoder_num_layers: Positive = 8
    decoder_hidden_size: Positive = 512
    decoder_num_heads: Positive = 16

    def faults(self) -> list[str]:
        faults = VisionConfig.faults(self)
        if self.decoder_hidden_size % self.decoder_num_heads:
            faults.append(
                f"model.decoder_num_heads={self.decoder_num_heads} does not divide "
                f"model.decoder_hidden_size={self.decoder_hidden_size}"
            )
        if self.decoder_hidden_size % 4:
            faults.append(f"model.decoder_hidden_size={self.decoder_hidden_size} does not divide by 4")
        return faults

    def split_over_ranks(self) -> dict[str, int]:
        return VisionConfig.split_over_ranks(self) | {"model.decoder_num_heads": self.decoder_num_heads}

    def build(self, num_classes: int, layers: Any) -> Any:
        """The torch module, its weights still empty. num_classes is not used: no label takes part."""
        from pretraining.models.mae import MAE

        return MAE(self, layers)


ModelConfig = Annotated[GPTConfig | BertConfig | T5Config | ViTConfig | MAEConfig, Field(discriminator="name")]


def head_faults(hidden_size: int, num_heads: int) -> list[str]:
    if hidden_size % num_heads == 0:
        return []
    return [f"model.num_heads={num_heads} does not divide model.hidden_size={hidden_size}"]
