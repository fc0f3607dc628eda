"""Model FLOPs utilization: the FLOPs that the model file states, against the device's peak."""

from __future__ import annotations

from dataclasses import dataclass

PEAK_FLOPS = {  # dense bf16, from the vendors' data sheets; the first name that a device's contains counts
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "V100": 125e12,
}


def device_peak(device_name: str) -> float | None:
    """FLOP/s of one device in bf16; None where it is not known (a CPU)."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)


def utilization(flops: float, seconds: float, ranks: int, peak: float | None) -> dict[str, float]:
    """flops: of one step over all ranks -> tflops of a rank, and mfu where the peak is known."""
    rate = flops / seconds / ranks
    found = {"tflops": rate / 1e12}
    return found if peak is None else {**found, "mfu": rate / peak}


@dataclass(frozen=True)
class Throughput:
    """What a run's speed is counted in. unit: tokens or images; flops_per_unit: forward and backward of one.
    ranks: that share the work of a step. peak: FLOP/s of one rank's device, None where it is not known."""

    unit: str
    flops_per_unit: float
    ranks: int
    peak: float | None

    def flops(self, units: int) -> float:
        """Forward and backward of so many units."""
        return self.flops_per_unit * units

    def utilization(self, units: int, seconds: float) -> dict[str, float]:
        """units: of one step over all ranks."""
        return utilization(self.flops_per_unit * units, seconds, self.ranks, self.peak)
