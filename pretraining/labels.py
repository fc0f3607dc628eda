"""The label that no loss counts: models and objectives both know it."""

IGNORED = -100  # the default ignore_index of torch's cross_entropy
