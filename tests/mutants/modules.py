"""Which modules are mutated, and which tests cover each, the quickest first."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "distributed_autolora"
_CORE = "tests/core"
_FAST = "tests/core/fast_attack"
_STUDY = "tests/reporting/study"
_TRAINING = "tests/training"
TESTS: dict[str, tuple[str, ...]] = {
    "core/attacks.py": (f"{_CORE}/test_attacks.py", f"{_CORE}/test_refusals.py"),
    "core/gradient_similarity.py": (f"{_CORE}/test_gradient_similarity.py",),
    "core/keyed_random.py": (f"{_CORE}/test_keyed_random.py", f"{_CORE}/test_refusals.py"),
    "core/lora.py": (
        *(f"{_CORE}/test_{name}.py" for name in ("lora", "branch_statistics", "gradient_routing", "refusals")),
    ),
    "core/losses.py": (f"{_CORE}/test_objectives.py", f"{_CORE}/test_refusals.py", f"{_CORE}/test_twins.py"),
    "core/objectives.py": (
        *(f"{_CORE}/test_{name}.py" for name in ("objectives", "gradient_routing", "branch_statistics", "refusals")),
    ),
    "core/paired_comparison.py": (f"{_CORE}/test_paired_comparison.py",),
    "core/schedules.py": (
        f"{_CORE}/test_schedules.py",
        f"{_CORE}/test_paired_comparison.py",
        f"{_CORE}/test_refusals.py",
    ),
    "core/threat_model.py": (f"{_CORE}/test_threat_model.py", f"{_CORE}/test_refusals.py", f"{_CORE}/test_attacks.py"),
    "core/twins.py": (*(f"{_CORE}/test_{name}.py" for name in ("twins", "refusals", "objectives")),),
    "core/weight_average.py": (f"{_CORE}/test_weight_average.py",),
    "core/fast_attack/attack_network.py": (f"{_FAST}/test_attack_network.py", f"{_FAST}/test_fusion.py"),
    "core/fast_attack/cuda_graphs.py": (f"{_FAST}/test_cuda_graphs.py",),
    "core/fast_attack/tf32.py": (f"{_FAST}/test_tf32.py",),
    "core/fast_attack/fused_convolution.py": (f"{_FAST}/test_fused_convolution.py", f"{_FAST}/test_attack_network.py"),
    "core/fast_attack/fusion.py": (f"{_FAST}/test_fusion.py", f"{_FAST}/test_fused_convolution.py"),
    "data/sampler.py": ("tests/data/test_sampler.py",),
    "data/splits.py": ("tests/data/test_splits.py", "tests/data/test_dataset_check.py"),
    "evaluation/masking_test.py": ("tests/reporting/test_masking.py",),
    "evaluation/sanity/rules.py": ("tests/evaluation/sanity",),
    "reporting/statistics.py": ("tests/reporting/test_statistics.py", f"{_STUDY}/test_statistics.py"),
    "reporting/study/statistics.py": (f"{_STUDY}/test_statistics.py", f"{_STUDY}/test_report.py"),
    "studies/*.py": ("tests/studies",),
    "training/distributed/*.py": (
        *(f"{_TRAINING}/{name}" for name in ("distributed", "test_one_row.py", "test_workers_equal_one.py")),
    ),
    "training/methods/*.py": (f"{_TRAINING}/methods", f"{_TRAINING}/test_workers_equal_one.py"),
    "training/masking_check.py": (f"{_TRAINING}/test_masking_check.py",),
    "training/*.py": (
        f"{_TRAINING}/methods/test_registry.py",
        *(f"{_TRAINING}/test_{name}.py" for name in ("resume", "no_test_split", "divergence", "masking_check")),
    ),
}


def covering(module: str) -> tuple[str, ...]:
    """Returns the tests of a module, relative to the repository."""
    return next(tests for pattern, tests in TESTS.items() if fnmatch(module, f"{PACKAGE}/{pattern}"))


def modules() -> list[str]:
    """Returns the modules that are mutated, relative to the repository."""
    found = {
        str(file.relative_to(ROOT))
        for pattern in TESTS
        for file in (ROOT / PACKAGE).glob(pattern)
        if file.name != "__init__.py"
    }
    return sorted(found)
