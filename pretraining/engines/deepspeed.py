"""DeepSpeed ZeRO, stage 0 to 3, with our optimizers as its client optimizer.

ZeRO 1 to 3 hand the optimizer one flat fp32 tensor. `_shards` maps it back to fragments of the model's tensors, so
that clipping, decay and every optimizer's statistics are those of the whole tensors. All parameters are in one group
(decay is a shard's own setting), which makes one partition, one sub-group and one optimizer step of it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from pretraining.config import TrainConfig
from pretraining.engines.base import Batch, EngineBase, LossModule, Start
from pretraining.engines.config import EngineConfig
from pretraining.models.base import Model
from pretraining.optim.base import Optimizer, ParameterShard, UpdateRule
from pretraining.parallel.fragments import Fragment
from pretraining.parallel.mesh import Axis, Mesh
from pretraining.parallel.world import World


class FlatRange(NamedTuple):
    """Elements [start, stop) of a tensor lie at `position` of this rank's flat partition."""

    name: str
    start: int
    stop: int
    position: int


class FragmentAddress(Protocol):
    start: int
    numel: int


class FragmentMapping(Protocol):
    """DeepSpeed's note of where a parameter lies under ZeRO 1 and 2."""

    hp_fragment_address: FragmentAddress  # in this rank's flat fp32 partition
    lp_fragment_address: FragmentAddress  # in the flattened parameter


class MappedParameter(Protocol):
    """A parameter under ZeRO 1 or 2."""

    _hp_mapping: FragmentMapping | None  # None where this rank holds nothing of it


class PartitionedParameter(Protocol):
    """A parameter under ZeRO 3: its own data are empty between uses."""

    ds_tensor: Tensor  # this rank's flat range
    ds_numel: int  # of the whole parameter

    def convert_to_zero_parameters(self, param_list: list[nn.Parameter]) -> None: ...


class DeepSpeedEngine(EngineBase):
    def __init__(
        self, config: EngineConfig, module: LossModule, rule: UpdateRule, train: TrainConfig, world: World, start: Start
    ) -> None:
        self.stage = config.zero_stage
        self.settings_of_deepspeed = _deepspeed_config(train, world, self.stage)
        _prepare(world)
        super().__init__(module, rule, train, world, start)
        self.engine = _initialize(self.module, self.optimizer, world, self.settings_of_deepspeed)
        self.evaluated = self.engine  # its hooks gather what ZeRO 3 has partitioned
        layout = self.layout.for_optimizer(dealt=self.stage > 0)
        self.optimizer.attach(list(self._shards()), layout, self._read_gradients)

    def fill(self, start: Start) -> None:
        if self.stage < 3:
            super().fill(start)
            return
        partition, layers = _Partition(self.world, self.settings_of_deepspeed), self.module.model.layers
        layers.filled = partition
        start()
        layers.filled = None
        for parameter in self.module.parameters():  # which start has left alone, as before a checkpoint is read
            partition(parameter)
        self.module.to(self.world.device)  # its buffers

    def forward_backward(self, batch: Batch, weights: Mapping[str, float], last: bool) -> dict[str, Tensor]:
        sums = self.engine(batch)
        # False: the weights divide by the counts of the whole step already, not of a micro-batch
        self.engine.backward(self.scaled(sums, weights), scale_wrt_gas=False)
        if not last:
            self.engine.step()  # only counts the micro-batch: it updates at the last one
        return sums

    def step(self, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr
        self.engine.step()
        if self.stage and self.engine.optimizer.overflow:  # ZeRO skipped the step, our optimizer never saw it
            self.optimizer.skip()

    def whole_model(self) -> Model | None:
        return None if self.stage == 3 else super().whole_model()

    def weights(self) -> list[tuple[Fragment, Tensor]]:
        return [(s.fragment.renamed(f"weights.{s.fragment.name}"), s.value) for s in self.optimizer.shards]

    def frozen_weights(self) -> list[tuple[Fragment, Tensor]]:
        if self.stage < 3:
            return super().frozen_weights()
        found = []
        for name, parameter in self.frozen.items():
            whole = self.frozen_layout.whole(name).renamed(f"weights.{name}")
            part = cast(PartitionedParameter, parameter).ds_tensor.data.view(-1)  # a flat range, padded at the end
            start = min(self.world.mesh.shard_rank * part.numel(), whole.stop)
            stop = min(start + part.numel(), whole.stop)
            fragment = replace(whole, start=start, stop=stop, copied_over=whole.copied_over - {Axis.DATA})
            found.append((fragment, part[: stop - start]))
        return found

    @torch.no_grad()
    def after_load(self) -> None:
        """The model's own tensors follow from the flat fp32 partitions."""
        super().after_load()
        zero = self.engine.optimizer
        if self.stage in (1, 2):
            zero.update_lp_params()  # gathers them from the ranks' partitions
        elif self.stage == 3:
            # In the midst of a run small tensors are whole: they would not be gathered again, and keep their values.
            zero._partition_all_parameters()
            for group in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(group)
            if zero.persistent_parameters:  # small tensors that stay whole on every rank
                zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def _shards(self) -> Iterator[ParameterShard]:
        numbers = {name: i for i, name in enumerate(self.layout.names)}
        for where in self._flat_ranges():
            whole = self.layout.whole(where.name)
            copied_over = whole.copied_over - ({Axis.DATA} if self.stage else set())
            fragment = replace(whole, start=where.start, stop=where.stop, copied_over=copied_over)
            value = self._view(self._flat(), fragment, where)
            yield ParameterShard(fragment, value, self.settings[where.name], numbers[where.name])

    def _flat_ranges(self) -> list[FlatRange]:
        """Where the tensors lie, in the order of the flat partition; empty ranges left out."""
        if self.stage == 0:
            ranges = [FlatRange(n, 0, p.numel(), 0) for n, p in self.parameters.items()]
        elif self.stage < 3:
            mappings = {n: cast(MappedParameter, p)._hp_mapping for n, p in self.parameters.items()}
            ranges = [_zero12_range(n, mapping) for n, mapping in mappings.items() if mapping is not None]
        else:
            ranges = [self._zero3_range(n, cast(PartitionedParameter, p)) for n, p in self.parameters.items()]
        return [p for p in ranges if p.start < p.stop]

    def _zero3_range(self, name: str, parameter: PartitionedParameter) -> FlatRange:
        zero = self.engine.optimizer
        _, position, length = zero.grad_position[zero.get_param_id(parameter)]
        # every rank's range has the same length: the last ones are padded, or all padding
        start = min(self.world.mesh.shard_rank * length, parameter.ds_numel)
        return FlatRange(name, start, min(start + length, parameter.ds_numel), position)

    def _flat(self) -> Tensor | None:
        zero = self.engine.optimizer
        if self.stage == 0:
            return None
        flats = zero.single_partition_of_fp32_groups if self.stage < 3 else zero.fp32_partitioned_groups_flat
        assert len(flats) == 1, f"one flat partition expected, not {len(flats)}"
        return flats[0]

    def _view(self, flat: Tensor | None, fragment: Fragment, where: FlatRange) -> Tensor:
        if flat is None:
            return self.parameters[where.name].data
        part = flat.data[where.position : where.position + where.stop - where.start]
        # a whole tensor keeps its shape: Adafactor factors it without a reduction
        return part.view(fragment.box.size) if fragment.is_box else part

    def _read_gradients(self) -> None:
        flat = self._flat()
        gradient = None if flat is None else flat.grad
        for shard, where in zip(self.optimizer.shards, self._flat_ranges(), strict=True):
            if gradient is None:
                shard.grad = self.parameters[where.name].grad  # type: ignore[assignment]
            else:
                shard.grad = self._view(gradient, shard.fragment, where)


class ModelParallelUnit:
    """The ranks and groups by the names under which DeepSpeed asks for them."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def get_model_parallel_rank(self) -> int:
        return self.mesh.rank(Axis.TENSOR)

    def get_model_parallel_world_size(self) -> int:
        return self.mesh.size(Axis.TENSOR)

    def get_model_parallel_group(self) -> ProcessGroup | None:
        return self.mesh.group(Axis.TENSOR)

    def get_data_parallel_rank(self) -> int:
        return self.mesh.rank(Axis.DATA)

    def get_data_parallel_world_size(self) -> int:
        return self.mesh.size(Axis.DATA)

    def get_data_parallel_group(self) -> ProcessGroup | None:
        return self.mesh.group(Axis.DATA)

    # DeepSpeed asks by these names as well, in some versions and places
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group


def _zero12_range(name: str, mapping: FragmentMapping) -> FlatRange:
    partition, tensor = mapping.hp_fragment_address, mapping.lp_fragment_address
    return FlatRange(name, tensor.start, tensor.start + tensor.numel, partition.start)


class _Partition:
    """Deals a parameter out over the data-parallel ranks, each of which keeps its range of it: rank 0's values, on the
    device. A collective; what is dealt out already stays as it is."""

    def __init__(self, world: World, config: dict[str, Any]) -> None:
        self.world, self.config = world, config
        self.first: PartitionedParameter | None = None

    def __call__(self, parameter: nn.Parameter) -> None:
        from deepspeed.runtime.zero.partition_parameters import Init, is_zero_param

        if is_zero_param(parameter):
            return
        if self.first is not None:
            self.first.convert_to_zero_parameters(param_list=[parameter])
            return
        unit = _model_parallel_unit(self.world)
        Init(
            module=nn.ParameterList([parameter]),
            data_parallel_group=None if unit is None else unit.get_data_parallel_group(),
            config_dict_or_path=self.config,
            dtype=torch.float32,
            mpu=unit,
        )
        self.first = cast(PartitionedParameter, parameter)


def _model_parallel_unit(world: World) -> ModelParallelUnit | None:
    return ModelParallelUnit(world.mesh) if world.mesh.size(Axis.TENSOR) > 1 else None


def _prepare(world: World) -> None:
    """What DeepSpeed reads before anything of it is used."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if world.device.type == "cuda" else "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # it asserts one, also where no launcher was there to set it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    logger.addFilter(_proven)
    if world.device.type == "cpu":  # else it compiles an extension at the first use
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon()
    _require_process_group(world)
    if not deepspeed.comm.is_initialized():
        deepspeed.comm.init_distributed(dist_init_required=False)


def _import_muon() -> None:
    """DeepSpeed imports its Muon to tell other optimizers from it. Its decorators load torch's compiler into each rank,
    1.2 s of CPU at each start; nothing here calls it, so it is imported without them.
    """
    from deepspeed.runtime import compiler

    compiled = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = compiled


def _initialize(module: LossModule, optimizer: Optimizer, world: World, config: dict[str, Any]) -> Any:
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        mpu=_model_parallel_unit(world),
        dist_init_required=False,
        config=config,
    )
    return engine


def _proven(record: logging.LogRecord) -> bool:
    """It calls every optimizer but its own untested; ours are what `make parity` proves."""
    return "untested optimizer" not in record.getMessage()


def _deepspeed_config(train: TrainConfig, world: World, stage: int) -> dict[str, Any]:
    """fp32 throughout: the computation's type is LossModule's, clipping and loss scale are the optimizer's."""
    return {
        "train_batch_size": train.global_batch_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.global_batch_size // (train.micro_batch_size * world.mesh.batch_ranks),
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # else it refuses every optimizer but its own CPU Adam
        "steps_per_print": 10**9,  # never
        "zero_optimization": {
            "stage": stage,
            "round_robin_gradients": False,  # else a partition is no longer a flat range of the parameters in order
            "sub_group_size": 10**15,  # one sub-group: each more would be an optimizer step of its own
        },
    }


def _require_process_group(world: World) -> None:
    """DeepSpeed needs a process group even in a job of one process, which has none."""
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if world.device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1
        )
