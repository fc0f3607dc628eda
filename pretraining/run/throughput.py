"""Model FLOPs utilization: the FLOPs that the model file states, against the device's peak."""

from __future__ import annotations

PEAK_FLOPS = {  # dense bf16, from the vendors' data sheets
    "H200": 989e12,
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
