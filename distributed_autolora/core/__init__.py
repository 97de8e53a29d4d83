"""The mathematics: tensors in, tensors out.

Everywhere `x` are n images [n, C, H, W], `x_adv` their adversarial variants, `y` their labels [n], and logits are
[n, classes].
"""
