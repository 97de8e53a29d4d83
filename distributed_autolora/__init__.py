"""Parameter-free adversarially robust fine-tuning of vision models, distributed with Ray."""
