"""Which engine carries a run and how it lays the tensors out, checked before torch is imported."""

from __future__ import annotations

from typing import Literal

from data_pipeline.common.fields import Positive, configclass


@configclass
class EngineConfig:
    """torch: one process, or DDP. deepspeed: ZeRO stage 0 to 3, alone or times tensor_parallel. megatron: tensor and
    sequence parallel, times data parallel. shard_optimizer (torch, megatron): each data-parallel rank keeps the
    optimizer's state of some of the tensors."""

    name: Literal["torch", "deepspeed", "megatron"]
    zero_stage: Literal[0, 1, 2, 3] = 0
    tensor_parallel: Positive = 1
    sequence_parallel: bool = False
    shard_optimizer: bool = False

    def faults(self) -> list[str]:
        faults = []
        if self.zero_stage and self.name != "deepspeed":
            faults.append(f"engine.zero_stage={self.zero_stage} needs engine=deepspeed, not engine={self.name}")
        if self.tensor_parallel > 1 and self.name == "torch":
            faults.append(f"engine.tensor_parallel={self.tensor_parallel} needs engine=megatron, or engine=deepspeed")
        if self.tensor_parallel not in PROVEN_TENSOR_PARALLEL[self.name]:
            faults.append(
                f"engine.tensor_parallel={self.tensor_parallel} is not proven with engine={self.name}; "
                f"proven are {', '.join(map(str, PROVEN_TENSOR_PARALLEL[self.name]))}"
            )
        if self.sequence_parallel and (self.name != "megatron" or self.tensor_parallel == 1):
            faults.append("engine.sequence_parallel=true needs engine=megatron and engine.tensor_parallel=2 or 4")
        if self.shard_optimizer and self.name == "deepspeed":
            faults.append("engine.shard_optimizer=true: with engine=deepspeed that is engine.zero_stage=1")
        return faults

    def data_parallel(self, world_size: int) -> int:
        """Over how many ranks the global batch is dealt."""
        return world_size // self.tensor_parallel


PROVEN_TENSOR_PARALLEL = {"torch": (1,), "deepspeed": (1, 2), "megatron": (1, 2, 4)}
