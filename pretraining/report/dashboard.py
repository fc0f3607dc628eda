"""The dashboard of a project in W&B, as a workspace: its panels draw what pretraining.run.charts names."""

from __future__ import annotations

from typing import Any

from data_pipeline.common.errors import InputError

NAME = "Pretraining"
BEST = "valid/loss.min"
PACKAGE = "wandb-workspaces"
COLUMNS = ("run:displayName", "run:state", f"summary:{BEST}", "summary:speed/tokens_per_second_overall")
CONFIG_COLUMNS = ("config:optimizer.value.lr", "config:train.value.global_batch_size", "config:model.value.name")


def build_dashboard(entity: str, project: str) -> Any:
    """The workspace, which `save()` sends to W&B; nothing is asked for here. Raises InputError where the package that
    makes it is not installed."""
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise InputError(
            f"a dashboard needs the Python package {PACKAGE}: pip install 'pretraining[dashboard]'"
        ) from error
    sections = [
        _section("Loss", loss_panels(), columns=2),
        _section("Health", health_panels(), columns=3),
        _section("Speed", speed_panels(), columns=3),
        _section("Samples", sample_panels(), columns=2),
        _section("Compare", compare_panels(), columns=2, is_open=False),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=20),
        runset_settings=ws.RunsetSettings(
            order=[ws.Ordering(ws.Summary(BEST), ascending=True)], pinned_columns=[*COLUMNS, *CONFIG_COLUMNS]
        ),
        auto_generate_panels=False,
    )


def _section(name: str, panels: list[Any], columns: int, is_open: bool = True) -> Any:
    import wandb_workspaces.workspaces as ws

    layout = ws.SectionLayoutSettings(columns=columns, rows=-(-len(panels) // columns))
    axis = ws.SectionPanelSettings(x_axis="step")  # W&B's own counter without it
    return ws.Section(name=name, panels=panels, is_open=is_open, layout_settings=layout, panel_settings=axis)


def _line(title: str, *curves: str, x: str = "step", smooth: bool = False, **more: Any) -> Any:
    import wandb_workspaces.reports.v2 as wr

    smoothing: dict[str, Any] = {}
    if smooth:
        smoothing = {"smoothing_type": "exponential", "smoothing_factor": 0.9, "smoothing_show_original": True}
    return wr.LinePlot(title=title, x=x, y=list(curves), **smoothing, **more)


def loss_panels() -> list[Any]:
    return [
        _line("Training loss", "train/loss", "train/loss_max", smooth=True, ignore_outliers=True),
        _line("Validation loss", "valid/loss"),
        _line("Training and validation over tokens", "train/loss", "valid/loss", x="tokens", log_x=True),
        _line("Bits per byte", "valid/bits_per_byte"),
        _line("Training loss over hours", "train/loss", x="hours", smooth=True, ignore_outliers=True),
        _line("Validation loss over FLOPs", "valid/loss", x="flops", log_x=True, log_y=True),
    ]


def health_panels() -> list[Any]:
    return [
        _line("Gradient norm, before clipping", "train/grad_norm", log_y=True),
        _line("Learning rate", "train/lr"),
        _line("Gradient norm by layer", metric_regex="layers/grad_norm/.*", log_y=True),
        _line("Update over weights by layer", metric_regex="layers/update/.*", log_y=True),
        _line("Trust ratio by layer (LAMB)", metric_regex="layers/trust_ratio/.*", log_y=True),
        _line("Accuracy", "valid/accuracy"),
        _line("Skipped steps", "train/skipped"),
        _line("Loss spikes", "train/spike"),
        _line("Loss scale (fp16)", "train/loss_scale", log_y=True),
    ]


def speed_panels() -> list[Any]:
    return [
        _line("Tokens per second", "speed/tokens_per_second", "speed/tokens_per_second_overall", smooth=True),
        _line("Images per second", "speed/images_per_second", "speed/images_per_second_overall", smooth=True),
        _line("Model FLOPs utilization and goodput", "speed/mfu", "speed/goodput", range_y=(0, 1)),
        _line("Share of time waiting for data", "speed/data_wait", range_y=(0, 1)),
        _line("Seconds per step", "speed/step_seconds", smooth=True, ignore_outliers=True),
        _line("Memory, largest rank (GB)", "speed/memory_gb"),
        _line("Slowest and median rank, seconds", "speed/slowest_rank_seconds", "speed/median_rank_seconds"),
    ]


def sample_panels() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    pictures = ["samples/predictions", "samples/reconstruction"]
    return [
        wr.MediaBrowser(title="Text", media_keys=["samples/text"]),
        wr.MediaBrowser(title="Pictures", media_keys=pictures),
    ]


def compare_panels() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    rate, batch = wr.Config("optimizer.lr"), wr.Config("train.global_batch_size")
    best = wr.SummaryMetric(BEST)
    column = wr.ParallelCoordinatesPlotColumn
    return [
        wr.RunComparer(diff_only="split"),
        wr.BarPlot(title="Best validation loss", metrics=[best]),
        wr.ParallelCoordinatesPlot(columns=[column(rate, log=True), column(batch), column(best)]),
        wr.ScatterPlot(title="Best validation loss by learning rate", x=rate, y=best, log_x=True),
    ]
