"""Does this framework learn as well as a plain loop? For each family, both train on the same tokens from the same
initial weights, and one evaluator measures both.

    make convergence               python -m benchmarks.convergence [--families gpt bert] [--seeds 1 2 3]
    make convergence-optimizers    python -m benchmarks.convergence.optimizers

- `inputs`, `ours`: raw files, and this framework's three commands.
- `reference`: the plain loop and the evaluator; `gpt`, `bert`, `t5`, `vit`: transformers' model and batches cut and
  corrupted by the published algorithm, written independently in numpy. They import nothing of the framework: prepared
  data are read by tarfile.
- `recipes`: the sizes; `table`: the tables in docs/benchmarks.md.
"""
