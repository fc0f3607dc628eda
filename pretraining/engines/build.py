"""Chooses the engine and the layers that a config asks for; each is imported only then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pretraining.config import TrainConfig
from pretraining.engines.config import EngineConfig

if TYPE_CHECKING:
    from pretraining.engines.base import Engine, LossModule, Start
    from pretraining.optim.base import UpdateRule
    from pretraining.parallel.layers import Layers
    from pretraining.parallel.mesh import Mesh
    from pretraining.parallel.world import World


def make_layers(config: EngineConfig, mesh: Mesh) -> Layers:
    """What the model is built from."""
    if config.tensor_parallel == 1:
        from pretraining.parallel.layers import PlainLayers

        return PlainLayers(mesh.gradient_group if mesh.gradient_ranks > 1 else None)
    from pretraining.parallel.megatron import MegatronLayers

    return MegatronLayers(mesh, config.sequence_parallel)


def build_engine(
    config: EngineConfig, module: LossModule, rule: UpdateRule, train: TrainConfig, world: World, start: Start
) -> Engine:
    """start: fills the parameters; called once the engine is ready to deal them out.

    engine=torch and engine=megatron are one engine over different layers."""
    if config.name == "deepspeed":
        from pretraining.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(config, module, rule, train, world, start)
    from pretraining.engines.torch import TorchEngine

    return TorchEngine(config, module, rule, train, world, start)
