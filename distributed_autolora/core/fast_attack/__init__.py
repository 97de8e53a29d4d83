"""The network that an attack searches on: folded batch norm, fused convolutions, CUDA graphs, number formats."""
