"""A family, an objective and an optimizer from outside the package, by the files that CONTRIBUTING.md names."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.helpers import metrics, run_process

FILES = {
    "toy/__init__.py": """
from pretraining.models.registry import FAMILIES, Family
from pretraining.models.roles import Role
from pretraining.objectives.registry import OBJECTIVES, ObjectiveEntry
from pretraining.optim.registry import OPTIMIZERS, OptimizerEntry

FAMILIES["bigram"] = Family("toy.config:BigramConfig", "toy.model:Bigram", frozenset({Role.DECODER}))
OBJECTIVES["half_lm"] = ObjectiveEntry("toy.objective:HalfLMConfig", "toy.objective:HalfLM", Role.DECODER, "text")
OPTIMIZERS["signsgd"] = OptimizerEntry("toy.optimizer_config:SignSGDConfig", "toy.optimizer:SignSGD")
""",
    "toy/config.py": """
from typing import Literal

from data_pipeline.common.fields import configclass
from pretraining.models.config import TextConfig


@configclass
class BigramConfig(TextConfig):
    '''A table of what follows what, through one hidden layer.'''

    name: Literal["bigram"]
""",
    "toy/model.py": """
from pretraining.models.blocks import BlockStack
from pretraining.models.initialization import initialize
from pretraining.models.transformer import TextModel
from pretraining.models.vocabulary import padded_vocabulary


class Bigram(TextModel):
    def __init__(self, config, vocabulary, layers):
        super().__init__()
        self.config, self.vocab_size, self.layers = config, vocabulary.size, layers
        self.token_embedding = layers.embedding(padded_vocabulary(vocabulary.size), config.hidden_size)
        self.mix = layers.row(config.hidden_size, config.hidden_size)

    def forward(self, tokens, positions=None, documents=None):
        return self.mix(self.token_embedding(tokens))

    def block_stacks(self):
        return [BlockStack([self.mix], (self.token_embedding,))]

    def flops_per_token(self, length):
        return 6.0 * self.published_parameters()

    def initialize(self, seed):
        initialize(self, self.layers, seed, lambda name, tensor, generator: tensor.normal_(0, 0.1, generator=generator))
""",
    "toy/objective.py": """
from typing import Literal

from data_pipeline.common.fields import configclass
from pretraining.objectives.text.causal_lm import CausalLM, CausalLMConfig


@configclass
class HalfLMConfig(CausalLMConfig):
    '''Language modeling whose loss counts half.

    weight: of the loss.
    '''

    name: Literal["half_lm"]
    weight: float = 0.5


class HalfLM(CausalLM):
    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.terms = {"causal_lm": config.weight}
""",
    "toy/optimizer_config.py": """
from typing import Literal

from data_pipeline.common.fields import PositiveFloat, configclass


@configclass
class SignSGDConfig:
    '''Steps by the sign of the gradient.

    lr: peak learning rate.
    '''

    name: Literal["signsgd"]
    lr: PositiveFloat = 1e-3
    weight_decay: float = 0.0
    layer_decay: float = 1.0
""",
    "toy/optimizer.py": """
from pretraining.optim.base import UpdateRule


class SignSGD(UpdateRule):
    def __init__(self, config):
        self.weight_decay, self.layer_decay = config.weight_decay, config.layer_decay

    def initial_state(self, shard):
        return {}

    def update(self, shards, step, layout):
        for shard in shards:
            shard.value.sub_(shard.grad.sign() * step.finite, alpha=step.lr)
""",
    "conf/model/bigram_tiny.yaml": "name: bigram\nnum_layers: 1\nhidden_size: 16\nnum_heads: 1\nmax_seq_len: 32\n",
    "conf/objective/half_lm.yaml": "name: half_lm\n",
    "conf/optimizer/signsgd.yaml": "name: signsgd\n",
    "conf/experiment/toy.yaml": """# @package _global_
defaults:
  - override /model: bigram_tiny
  - override /objective: half_lm
  - override /optimizer: signsgd
modules: [toy]
""",
}


def test_a_family_an_objective_and_an_optimizer_from_outside_train(tmp_path: Path, corpus: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    done = run_process(
        *(sys.executable, "-m", "pretraining.train", f"--config-dir={tmp_path / 'conf'}", "experiment=toy"),
        *(f"data.path={corpus}", f"run_dir={tmp_path / 'run'}", "optimizer.lr=0.01", "train.steps=12"),
        *("train.global_batch_size=8", "train.micro_batch_size=8", "train.eval_every=0", "train.log_every=1"),
        *("data.num_workers=1", "tracking.wandb=disabled", "scheduler.warmup_steps=0"),
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    losses = [line["loss"] for line in metrics(tmp_path / "run").values()]
    assert len(losses) == 12 and losses[-1] < losses[0] < 3.5  # half of ln(vocabulary)


def test_its_keys_are_explained_and_checked(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    command = (sys.executable, "-m", "pretraining.train", f"--config-dir={tmp_path / 'conf'}", "experiment=toy")
    wrong = run_process(*command, "objective.weigth=1", PYTHONPATH=str(tmp_path))
    assert wrong.returncode == 2 and "did you mean 'objective.weight'" in wrong.stderr
    shown = run_process(*command, "--help", PYTHONPATH=str(tmp_path))
    assert shown.returncode == 0 and "of the loss." in shown.stdout
