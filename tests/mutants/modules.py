"""Which modules are mutated, and which tests cover each, the quickest first."""

from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "distributed_autolora"
TESTS: dict[str, str] = {
    "core/attacks.py": "core/test_attacks core/test_refusals",
    "core/gradient_similarity.py": "core/test_gradient_similarity",
    "core/keyed_random.py": "core/test_keyed_random core/test_refusals",
    "core/lora.py": "core/test_lora core/test_branch_statistics core/test_refusals",
    "core/losses.py": "core/test_objectives core/test_refusals core/test_twins",
    "core/objectives.py": "core/test_objectives core/test_branch_statistics core/test_refusals",
    "core/paired_comparison.py": "core/test_paired_comparison",
    "core/schedules.py": "core/test_schedules core/test_paired_comparison core/test_refusals",
    "core/threat_model.py": "core/test_threat_model core/test_l2 core/test_refusals core/test_attacks",
    "core/twins.py": "core/test_twins core/test_refusals core/test_objectives",
    "core/weight_average.py": "core/test_weight_average",
    "core/fast_attack/attack_network.py": "core/fast_attack/test_attack_network core/fast_attack/test_fusion",
    "core/fast_attack/cuda_graphs.py": "core/fast_attack/test_cuda_graphs",
    "core/fast_attack/tf32.py": "core/fast_attack/test_tf32",
    "core/fast_attack/fused_convolution.py": "core/fast_attack/test_fused_convolution "
    "core/fast_attack/test_attack_network",
    "core/fast_attack/fusion.py": "core/fast_attack/test_fusion core/fast_attack/test_fused_convolution",
    "data/sampler.py": "data/test_sampler",
    "data/splits.py": "data/test_splits data/test_dataset_check",
    "evaluation/masking_test.py": "reporting/test_masking",
    "evaluation/sanity/rules.py": "evaluation/sanity/test_sanity",
    "reporting/statistics.py": "reporting/test_statistics reporting/study/test_statistics",
    "reporting/study/statistics.py": "reporting/study/test_statistics reporting/study/test_report",
    "studies/*.py": "studies",
    "training/distributed/shard_batch_norm.py": "training/distributed training/test_shards",
    "training/distributed/collectives.py": "training/distributed training/test_workers_equal_one "
    "security/test_listening",
    "training/distributed/*.py": "training/distributed training/test_workers_equal_one",
    "training/methods/*.py": "training/methods training/test_workers_equal_one",
    "training/masking_check.py": "training/test_masking_check",
    "training/checkpoint_integrity.py": "orchestration/runs/test_broken_checkpoint training/test_resume",
    "training/memory_estimate.py": "training/test_memory_estimate",
    "training/checkpoint.py": "training/test_divergence training/test_resume training/methods/test_registry",
    "training/epoch.py": "training/test_divergence training/test_resume training/methods/test_registry "
    "training/test_masking_check",
    "training/attacks.py": "training/test_captured_attacks training/methods/test_registry training/test_resume",
    "training/task_data.py": "training/test_reading training/methods/test_registry training/test_resume",
    "training/*.py": "training/methods/test_registry training/test_resume training/test_no_test_split "
    "training/test_divergence training/test_masking_check",
}
"""Files, without .py, and folders below tests/."""


_FUSION = f"{PACKAGE}/core/fast_attack/fusion.py"
EQUIVALENT: dict[str, str] = {
    f"{_FUSION} _fusible: 1 -> 2 (3)": "Autograd refuses a change of the convolution's input, and a change of the "
    "residual before the addition is what the addition reads in either network.",
    f"{PACKAGE}/training/task_data.py : 2 -> 3": "A budget of memory: beyond it images are decoded again.",
}
"""Mutants that compute the same as the module, and why: no test can kill them."""


def covering(module: str) -> tuple[str, ...]:
    tests = next(tests for pattern, tests in TESTS.items() if fnmatch(module, f"{PACKAGE}/{pattern}"))
    return tuple(f"tests/{test}{'.py' if '/test_' in test else ''}" for test in tests.split())


def modules() -> list[str]:
    found = {
        str(file.relative_to(ROOT))
        for pattern in TESTS
        for file in (ROOT / PACKAGE).glob(pattern)
        if file.name != "__init__.py"
    }
    return sorted(found)
