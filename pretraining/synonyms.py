"""What other tools call our keys: the hint beside an unknown key.

By whole key, by first part ("hydra.*"), or by last part, in this order. A value with a space in it is a sentence.
"""

from __future__ import annotations

_ACCUMULATION = (
    "gradients are accumulated over train.global_batch_size / (train.micro_batch_size x data-parallel ranks) "
    "micro-batches"
)
_LAUNCHER = "how many processes run is the launcher's: torchrun --nproc-per-node N -m pretraining.train ..., or srun"
_WARMUP = "scheduler.warmup_steps=N counts steps"
_EPOCHS = "length is given in steps: train.steps=N"
_BATCH = "train.global_batch_size counts all ranks' sequences of a step, train.micro_batch_size those of one at once"
_BETAS = "optimizer.betas=[beta1,beta2] gives both"
_SCHEDULE_LENGTH = "the schedule ends with train.steps"

TRANSFORMERS = {
    "learning_rate": "optimizer.lr",
    "max_steps": "train.steps",
    "num_train_epochs": _EPOCHS,
    "per_device_train_batch_size": "train.micro_batch_size",
    "train_batch_size": _BATCH,
    "gradient_accumulation_steps": _ACCUMULATION,
    "gradient_checkpointing": "model.activation_checkpointing",
    "bf16": "train.precision=bf16",
    "fp16": "train.precision=fp16",
    "max_grad_norm": "train.grad_clip",
    "adam_beta1": _BETAS,
    "adam_beta2": _BETAS,
    "adam_epsilon": "optimizer.eps",
    "optim": "optimizer",
    "lr_scheduler_type": "scheduler",
    "warmup_ratio": "scheduler.warmup_fraction",
    "save_steps": "train.checkpoint_every",
    "save_total_limit": "train.keep_last",
    "eval_steps": "train.eval_every",
    "logging_steps": "train.log_every",
    "output_dir": "run_dir",
    "report_to": "tracking.wandb",
    "resume_from_checkpoint": "train.resume",
    "dataloader_num_workers": "data.num_workers",
    "num_hidden_layers": "model.num_layers",
    "num_attention_heads": "model.num_heads",
    "num_key_value_heads": "model.num_kv_heads",
    "d_model": "model.hidden_size",
    "d_ff": "model.intermediate_size",
    "d_kv": "model.head_dim",
    "n_embd": "model.hidden_size",
    "n_layer": "model.num_layers",
    "n_head": "model.num_heads",
    "n_inner": "model.intermediate_size",
    "n_positions": "model.max_seq_len",
    "max_position_embeddings": "model.max_seq_len",
    "rms_norm_eps": "model.norm_eps",
    "layer_norm_eps": "model.norm_eps",
    "hidden_act": "model.activation",
    "hidden_dropout_prob": "model.dropout",
    "attention_probs_dropout_prob": "model.attention_dropout",
    "tie_word_embeddings": "model.tie_embeddings",
    "mlm_probability": "objective.mask_rate",
    "model_name_or_path": "model.init_from",
}
MEGATRON = {
    "train_iters": "train.steps",
    "lr_warmup_iters": "scheduler.warmup_steps",
    "lr_decay_style": "scheduler",
    "clip_grad": "train.grad_clip",
    "seq_length": "data.seq_len",
    "ffn_hidden_size": "model.intermediate_size",
    "num_query_groups": "model.num_kv_heads",
    "rotary_base": "model.rope_theta",
    "init_method_std": "model.initializer_range",
    "tensor_model_parallel_size": "engine.tensor_parallel",
    "use_distributed_optimizer": "engine.shard_optimizer",
    "recompute_granularity": "model.activation_checkpointing",
    "save_interval": "train.checkpoint_every",
    "eval_interval": "train.eval_every",
    "eval_iters": "train.eval_batches",
    "log_interval": "train.log_every",
    "data_path": "data.path",
    "load": "train.resume",
    "save": "run_dir",
}
NANOGPT = {
    "block_size": "model.max_seq_len",
    "max_iters": "train.steps",
    "warmup_iters": "scheduler.warmup_steps",
    "lr_decay_iters": _SCHEDULE_LENGTH,
    "min_lr": "scheduler.min_ratio",
    "batch_size": _BATCH,
    "beta1": _BETAS,
    "beta2": _BETAS,
    "dtype": "train.precision",
    "out_dir": "run_dir",
    "wandb_log": "tracking.wandb",
    "wandb_project": "tracking.project",
    "wandb_run_name": "tracking.run_name",
}
TIMM = {
    "img_size": "model.image_size",
    "embed_dim": "model.hidden_size",
    "depth": "model.num_layers",
    "mlp_ratio": "model.intermediate_size",
    "drop_path_rate": "model.drop_path",
    "drop_rate": "model.dropout",
    "opt": "optimizer",
    "opt_eps": "optimizer.eps",
    "opt_betas": "optimizer.betas",
    "sched": "scheduler",
    "epochs": _EPOCHS,
    "warmup_epochs": _WARMUP,
    "smoothing": "objective.label_smoothing",
    "aa": "objective.rand_augment_ops",
    "hflip": "objective.flip_probability",
    "crop_pct": "objective.eval_crop",
    "scale": "objective.crop_scale",
    "ratio": "objective.crop_ratio",
    "workers": "data.num_workers",
    "global_pool": "model.pooling",
    "amp": "train.precision=bf16",
}
LIGHTNING = {
    "max_epochs": _EPOCHS,
    "accumulate_grad_batches": _ACCUMULATION,
    "gradient_clip_val": "train.grad_clip",
    "val_check_interval": "train.eval_every",
    "limit_val_batches": "train.eval_batches",
    "log_every_n_steps": "train.log_every",
    "ckpt_path": "train.resume",
    "default_root_dir": "run_dir",
    "strategy": "engine",
    "devices": _LAUNCHER,
    "num_nodes": _LAUNCHER,
    "accelerator": "the GPU is taken where there is one, else the CPU",
}
HYDRA = {
    "hydra.run.dir": "run_dir",
    "hydra.job.name": "tracking.run_name",
    "hydra.*": "hydra itself is not configured here: the run's folder is run_dir=PATH, own groups are --config-dir DIR",
}
_CLUSTER = "cluster=... is for pretrain-submit, which makes a job of the same command"
OTHERS = {
    "cluster": _CLUSTER,
    "cluster.*": _CLUSTER,
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "warmup": "scheduler.warmup_steps",
    "seed": "train.seed",
    "zero": "engine.zero_stage",
    "stage": "engine.zero_stage",
}
SYNONYMS = {**OTHERS, **TRANSFORMERS, **MEGATRON, **NANOGPT, **TIMM, **LIGHTNING, **HYDRA}
