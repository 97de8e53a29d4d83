"""An evaluation as a record, for tests of what reads it."""

from typing import Any

from distributed_autolora.records import AccuracyCount, AttackResult, Evaluation, SanityCheck

LABEL = "AutoAttack (standard, 4 targets: 5 classes)"


def evaluation(**more: Any) -> Evaluation:
    values: dict[str, Any] = {
        "digest": "e" * 64,
        "model": "demo-1",
        "model_digest": "m" * 64,
        "data": "fashion-mnist-5-9",
        "data_digest": "d" * 64,
        "task": "fashion-mnist-5-9",
        "protocol": "clean",
        "class_names": ("a", "b", "c", "d", "e"),
        "test_images": 1000,
        "test_images_available": 1000,
        "image_size": None,
        "image_shape": (1, 8, 8),
        "norm": "linf",
        "epsilon": 8 / 255,
        "natural": AccuracyCount(931, 1000),
        "attacks": (AttackResult("autoattack", LABEL, AccuracyCount(841, 1000)),),
        "broken_by": {"natural": 69, "apgd-ce": 90},
        "sanity": (SanityCheck("steps", "PASS", "x " * 60, {"robust": {"1": 900}, "total": 1000}),),
        "chunk_size": 100,
        "seed": 0,
        "num_workers": 2,
        "use_gpu": False,
        "chunk_seconds": 61.0,
        "wall_seconds": 31.0,
        "package_versions": {"torch": "2"},
    }
    return Evaluation(**(values | more))
