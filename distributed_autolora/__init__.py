"""Parameter-free adversarially robust fine-tuning of vision models, distributed with Ray."""

__version__ = "0.2.0"
