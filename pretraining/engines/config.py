"""Which engine carries a run and how it lays the tensors out, checked before torch is imported."""

from __future__ import annotations

from typing import Literal

from data_pipeline.common.fields import Positive, configclass


@configclass
class EngineConfig:
    """Which engine carries a run, and how it lays out tensors and work.

    name: torch is one process, or DDP; deepspeed is ZeRO; megatron is tensor and sequence parallelism, times data
        parallelism.
    zero_stage: what ZeRO shards: 1 the optimizer's state, 2 gradients too, 3 weights too. For engine=deepspeed.
    tensor_parallel: ranks that share each layer. For engine=megatron and engine=deepspeed.
    sequence_parallel: split activations between these ranks outside of their layers. For engine=megatron.
    shard_optimizer: each data-parallel rank keeps the optimizer's state of some of the tensors. For engine=torch and
        engine=megatron.
    """

    name: Literal["torch", "deepspeed", "megatron"]
    zero_stage: Literal[0, 1, 2, 3] = 0
    tensor_parallel: Positive = 1
    sequence_parallel: bool = False
    shard_optimizer: bool = False

    def problems(self) -> list[str]:
        problems = []
        if self.zero_stage and self.name != "deepspeed":
            problems.append(f"engine.zero_stage={self.zero_stage} needs engine=deepspeed, not engine={self.name}")
        if self.tensor_parallel > 1 and self.name == "torch":
            problems.append(f"engine.tensor_parallel={self.tensor_parallel} needs engine=megatron, or engine=deepspeed")
        elif self.tensor_parallel not in PROVEN_TENSOR_PARALLEL[self.name]:
            problems.append(
                f"engine.tensor_parallel={self.tensor_parallel} is not supported with engine={self.name}; "
                f"supported: {', '.join(map(str, PROVEN_TENSOR_PARALLEL[self.name]))}"
            )
        if self.sequence_parallel and (self.name != "megatron" or self.tensor_parallel == 1):
            problems.append("engine.sequence_parallel=true needs engine=megatron and engine.tensor_parallel=2 or 4")
        if self.shard_optimizer and self.name == "deepspeed":
            problems.append("engine.shard_optimizer=true: with engine=deepspeed that is engine.zero_stage=1")
        return problems

    def data_parallel(self, world_size: int) -> int:
        """Over how many ranks the global batch is dealt."""
        return world_size // self.tensor_parallel


PROVEN_TENSOR_PARALLEL = {"torch": (1,), "deepspeed": (1, 2), "megatron": (1, 2, 4)}
