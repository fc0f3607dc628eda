"""DeepSpeed ZeRO, stage 0 to 3, with our optimizers as its client optimizer.

ZeRO 1 to 3 hand the optimizer one flat fp32 tensor. `_pieces` maps it back to fragments of the model's tensors, so
that clipping, decay and every optimizer's statistics are those of the whole tensors. All parameters are in one group
(decay is a piece's own setting), which makes one partition, one sub-group and one optimizer step of it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretraining.engines.base import Batch, FrozenParameters, LossModule, ParameterLayout, trainable
from pretraining.engines.config import EngineConfig
from pretraining.optim.base import Optimizer, ParameterShard, UpdateRule
from pretraining.optim.groups import settings_by_name
from pretraining.parallel.fragments import Fragment, Layout
from pretraining.parallel.launch import World


class FlatRange(NamedTuple):
    """Elements [start, stop) of a tensor lie at `position` of this rank's flat partition."""

    name: str
    start: int
    stop: int
    position: int


class DeepSpeedEngine:
    def __init__(self, config: EngineConfig, module: LossModule, rule: UpdateRule, train: Any, world: World) -> None:
        self.world, self.stage = world, config.zero_stage
        self.module = module.to(world.device)
        self.parameters = trainable(self.module)
        # before ZeRO 3 empties the tensors
        self.places, self.frozen = ParameterLayout(self.parameters, world), FrozenParameters(self.module, world)
        settings = settings_by_name(module.model, self.places.names, rule.weight_decay, rule.layer_decay)
        self.optimizer = Optimizer(list(self.parameters.values()), rule, train.grad_clip, train.precision == "fp16")
        self.engine = _initialize(self.module, self.optimizer, train, world, config)
        layout = Layout(
            self.places.names,
            self.places.shapes,
            self.places.split,
            world.data_group if self.stage and world.data_size > 1 else None,
            world.tensor_group,
        )
        self.optimizer.attach(list(self._pieces(settings)), layout, self._read_gradients)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.engine(batch)

    def backward(self, loss: Tensor, last: bool) -> None:
        # DeepSpeed averages over the ranks
        self.engine.backward(loss * self.optimizer.loss_scale * self.world.data_size, scale_wrt_gas=False)
        if not last:
            self.engine.step()  # counts the micro-batch

    def step(self, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr
        self.engine.step()
        if getattr(self.engine.optimizer, "overflow", False):
            self.optimizer.skip()

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        self.engine.eval()
        with torch.no_grad():
            losses = self.engine(batch)
        self.engine.train()
        return losses

    def tensors(self) -> list[tuple[Fragment, Tensor]]:
        weights = [(p.fragment.renamed(f"weights.{p.fragment.name}"), p.value) for p in self.optimizer.pieces]
        return weights + self.frozen.tensors() + self.optimizer.state_tensors()

    @torch.no_grad()
    def after_load(self) -> None:
        """The model's own tensors follow from the flat fp32 partitions."""
        zero = self.engine.optimizer
        if self.stage in (1, 2):
            zero.update_lp_params()
        elif self.stage == 3:
            for group in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(group)
            if zero.persistent_parameters:
                zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def _pieces(self, settings: dict[str, Any]) -> Iterator[ParameterShard]:
        numbers = {name: i for i, name in enumerate(self.places.names)}
        for place in self._places():
            whole = self.places.whole(place.name)
            fragment = Fragment(place.name, whole.shape, whole.box, place.start, place.stop)
            value = self._view(self._flat(), fragment, place)
            yield ParameterShard(fragment, value, settings[place.name], numbers[place.name])

    def _places(self) -> list[FlatRange]:
        """Where the tensors lie, in the order of the flat partition; empty ranges left out."""
        zero = self.engine.optimizer
        if self.stage == 0:
            places = [FlatRange(n, 0, p.numel(), 0) for n, p in self.parameters.items()]
        elif self.stage < 3:
            places = [_zero12_place(n, p._hp_mapping) for n, p in self.parameters.items() if p._hp_mapping]  # type: ignore[attr-defined]
        else:
            places = [self._zero3_place(zero, n, p) for n, p in self.parameters.items()]
        return [p for p in places if p.start < p.stop]

    def _zero3_place(self, zero: Any, name: str, parameter: Any) -> FlatRange:
        _, position, length = zero.grad_position[zero.get_param_id(parameter)]
        start = min(self.world.data_rank * length, parameter.ds_numel)
        return FlatRange(name, start, min(start + length, parameter.ds_numel), position)

    def _flat(self) -> Tensor | None:
        zero = self.engine.optimizer
        if self.stage == 0:
            return None
        flats = zero.single_partition_of_fp32_groups if self.stage < 3 else zero.fp32_partitioned_groups_flat
        assert len(flats) == 1, f"one flat partition expected, not {len(flats)}"
        return flats[0]

    def _view(self, flat: Tensor | None, fragment: Fragment, place: FlatRange) -> Tensor:
        if flat is None:
            return self.parameters[place.name].data
        part = flat.data[place.position : place.position + place.stop - place.start]
        return part.view(fragment.box.size) if fragment.is_box else part

    def _read_gradients(self) -> None:
        flat = self._flat()
        gradient = None if flat is None else flat.grad
        for piece, place in zip(self.optimizer.pieces, self._places(), strict=True):
            if gradient is None:
                piece.grad = self.parameters[place.name].grad  # type: ignore[assignment]
            else:
                piece.grad = self._view(gradient, piece.fragment, place)


class ModelParallelUnit:
    """The ranks and groups by the names under which DeepSpeed asks for them."""

    def __init__(self, world: World) -> None:
        self.world = world

    def get_model_parallel_rank(self) -> int:
        return self.world.tensor_rank

    def get_model_parallel_world_size(self) -> int:
        return self.world.tensor_size

    def get_model_parallel_group(self) -> Any:
        return self.world.tensor_group

    def get_data_parallel_rank(self) -> int:
        return self.world.data_rank

    def get_data_parallel_world_size(self) -> int:
        return self.world.data_size

    def get_data_parallel_group(self) -> Any:
        return self.world.data_group

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group


def _zero12_place(name: str, mapping: Any) -> FlatRange:
    partition, tensor = mapping.hp_fragment_address, mapping.lp_fragment_address
    return FlatRange(name, tensor.start, tensor.start + tensor.numel, partition.start)


def _initialize(module: LossModule, optimizer: Optimizer, train: Any, world: World, config: EngineConfig) -> Any:
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
    _require_process_group(world)
    mpu = None if world.tensor_group is None else ModelParallelUnit(world)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        mpu=mpu,
        dist_init_required=False,
        config=_deepspeed_config(train, world, config.zero_stage),
    )
    return engine


def _proven(record: logging.LogRecord) -> bool:
    """It calls every optimizer but its own untested; ours are what `make parity` proves."""
    return "untested optimizer" not in record.getMessage()


def _deepspeed_config(train: Any, world: World, stage: int) -> dict[str, Any]:
    """fp32 throughout: the computation's type is LossModule's, clipping and loss scale are the optimizer's."""
    return {
        "train_batch_size": train.global_batch_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.global_batch_size // (train.micro_batch_size * world.data_size),
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": stage, "round_robin_gradients": False, "sub_group_size": 10**15},
    }


def _require_process_group(world: World) -> None:
    """DeepSpeed needs a process group even in a job of one process, which has none."""
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if world.device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1
        )
