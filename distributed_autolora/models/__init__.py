"""Backbones, what happens to an image before their first layer, and their weights in files."""

from distributed_autolora.models.classifier import Classifier, build
from distributed_autolora.models.weights import load_backbone, read_weights, save_weights

__all__ = ["Classifier", "build", "load_backbone", "read_weights", "save_weights"]
