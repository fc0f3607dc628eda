"""What transformers objects to in a config, asked before anything is trained."""

from __future__ import annotations

from torch import nn

from data_pipeline.common.errors import InputError
from pretraining.models.huggingface.architectures import KNOWN
from pretraining.models.huggingface.config import HuggingFaceConfig
from pretraining.models.huggingface.network import empty_network
from pretraining.models.huggingface.settings import PROBE, setting_problems
from pretraining.models.huggingface.sight import sight_problems
from pretraining.models.huggingface.tracing import META, refusing, run_problems, without_gradient

SHOWN = 5  # names in a message
MOST_PARAMETERS = 10**14  # a hundred times those of the largest models


def problems_of(config: HuggingFaceConfig) -> list[str]:
    """Of its settings, and of a class that is not in the table also whether its objective trains all of it and
    whether its tokens see what their role allows."""
    problems = setting_problems(config)
    if problems:
        return problems
    try:
        with refusing(f"model.architecture={config.architecture} with these model.settings is not supported"):
            network = empty_network(config, PROBE, META)
    except InputError as error:
        return [str(error)]
    if nothing := [name for name, p in network.named_parameters() if p.numel() == 0]:
        return [f"model.architecture={config.architecture} with these model.settings has no values in {nothing[0]}"]
    if (size := sum(p.numel() for p in network.parameters())) > MOST_PARAMETERS:
        return [f"model.architecture={config.architecture} with these model.settings has {size:.0e} parameters"]
    if config.architecture in KNOWN:
        return run_problems(config)
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    if any(isinstance(module, norms) for module in network.modules()):
        return [
            f"model.architecture={config.architecture} normalizes over the batch, which is supported for "
            f"{', '.join(name for name, facts in KNOWN.items() if facts.batch_norm)} only"
        ]
    try:
        names = without_gradient(config)
        with refusing(f"model.architecture={config.architecture} is not supported: it does not run on a row of tokens"):
            seen = sight_problems(config)
    except InputError as error:
        return [str(error)]
    if seen:
        return seen
    if not names:
        return []
    return [
        f"model.architecture={config.architecture}: no gradient reaches {', '.join(names[:SHOWN])}"
        f"{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}; only a class whose parameters are all "
        "trained is supported, or one whose others are listed in pretraining/models/huggingface/architectures.py"
    ]
