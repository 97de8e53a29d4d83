"""Mutants that compute the same as the module, and why: no test can kill them."""

_FUSION = "distributed_autolora/core/fast_attack/fusion.py"

EQUIVALENT: dict[str, str] = {
    f"{_FUSION} _fusible: 1 -> 2 (3)": "Autograd refuses a change of the convolution's input, and a change of the "
    "residual before the addition is what the addition reads in either network.",
}
