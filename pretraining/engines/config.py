"""Which engine carries a run and how it lays the tensors out, checked before torch is imported."""

from __future__ import annotations

from typing import Any, Literal

from data_pipeline.config import Positive, configclass


@configclass
class EngineConfig:
    """torch: one process, or DDP. deepspeed: ZeRO stage 0 to 3."""

    name: Literal["torch", "deepspeed"]
    zero_stage: Literal[0, 1, 2, 3] = 0
    tensor_parallel: Positive = 1
    sequence_parallel: bool = False

    def faults(self) -> list[str]:
        faults = []
        if self.zero_stage and self.name != "deepspeed":
            faults.append(f"engine.zero_stage={self.zero_stage} needs engine=deepspeed, not engine={self.name}")
        if self.tensor_parallel > 1 or self.sequence_parallel:
            faults.append("engine.tensor_parallel and engine.sequence_parallel are not offered yet: "
                          "the nearest layout that is proven is engine=deepspeed engine.zero_stage=3")
        return faults

    def data_parallel(self, world_size: int) -> int:
        """Over how many ranks the global batch is dealt."""
        return world_size // self.tensor_parallel

    def build(self, *args: Any) -> Any:
        """The engine for (loss module, rule, train config, world); see engines.protocol.Engine."""
        if self.name == "torch":
            from pretraining.engines.torch import TorchEngine

            return TorchEngine(*args)
        from pretraining.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(self, *args)
