"""The range of every number in a config."""

from __future__ import annotations

import math

RANGES: tuple[tuple[str, float, float], ...] = (
    ("seed", 0, 2**31 - 1),
    ("data.train_images", 2, math.inf),
    ("data.val_fraction", 0.001, 0.5),
    ("data.val_images_min", 0, math.inf),
    ("data.split_seed", 0, 2**31 - 1),
    ("data.image_size", 1, math.inf),
    ("model.input_size", 1, math.inf),
    ("method.lora_rank", 1, math.inf),
    ("method.sharpening", 0, math.inf),
    ("method.kl_weight_max", 0, math.inf),
    ("method.natural_weight", 0, 1),
    ("method.kl_weight", 0, math.inf),
    ("method.trades_beta", 0, math.inf),
    ("method.twins_gamma", 0, math.inf),
    ("threat_model.epsilon", 0, 1),
    ("train_attack.num_steps", 0, math.inf),
    ("train_attack.step_size", 0, 1),
    ("eval_attack.num_steps", 0, math.inf),
    ("eval_attack.step_size", 0, 1),
    ("schedule.interval", 1, math.inf),
    ("schedule.min_lr", 0, math.inf),
    ("optimization.epochs", 1, math.inf),
    ("optimization.global_batch_size", 2, math.inf),
    ("optimization.lr", 1e-12, math.inf),
    ("optimization.momentum", 0, 0.999999),
    ("optimization.weight_decay", 0, math.inf),
    ("evaluation.batch_size_per_worker", 1, math.inf),
    ("evaluation.gradient_similarity_images", 0, math.inf),
    ("evaluation.masking_every", 0, math.inf),
    ("scaling.num_workers", 1, math.inf),
    ("scaling.cpus_per_worker", 1, math.inf),
    ("scaling.wait_for_resources_s", 1, math.inf),
    ("scaling.collective_timeout_s", 1, math.inf),
    ("scaling.max_failures", 0, math.inf),
    ("scaling.check_finite_every", 1, math.inf),
    ("scaling.checkpoint_every_s", 0, math.inf),
)
"""Name, smallest and largest value; None is always allowed."""
