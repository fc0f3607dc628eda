"""`pretrain-dashboard entity=NAME project=NAME`: makes a project's dashboard in W&B."""

from __future__ import annotations

import sys

from data_pipeline.common.command import run_command
from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import Failure
from data_pipeline.common.fields import configclass

ABOUT = """pretrain-dashboard: makes a dashboard of a project in W&B, useful from the first run on.

Loss over steps, tokens, hours and FLOPs, health, speed, samples, and runs compared. It is a view of its own, called
Pretraining: those that the project has stay. W&B is logged into as for a run (`wandb login`, or WANDB_API_KEY).

Example:
  pretrain-dashboard entity=my-team project=pretraining
"""


@configclass
class DashboardConfig:
    """Make a project's dashboard in W&B.

    entity: the user or team that the project belongs to.
    project: the project, tracking.project of its runs.
    """

    entity: str
    project: str = "pretraining"


def main() -> int:
    return run_command(dashboard, ABOUT, "dashboard", DashboardConfig)


def dashboard(overrides: list[str]) -> None:
    from pretraining.report.dashboard import build_dashboard

    config = compose_config("dashboard", overrides, DashboardConfig)
    made = build_dashboard(config.entity, config.project)
    try:
        made.save()
    except Exception as error:  # of its own kinds, requests' and W&B's: no key, no network, no such project
        raise Failure(f"W&B did not take the dashboard: {error}") from error
    print(made.url)


if __name__ == "__main__":
    sys.exit(main())
