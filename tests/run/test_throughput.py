from __future__ import annotations

import pytest

from pretraining.run.throughput import device_peak


@pytest.mark.parametrize(
    ("device", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-80GB", 312),
    ],
)
def test_cards_of_one_name_have_peaks_of_their_own(device: str, tera: int) -> None:
    assert device_peak(device) == tera * 1e12


def test_an_unknown_device_has_no_peak() -> None:
    assert device_peak("cpu") is None
