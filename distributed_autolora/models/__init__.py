"""Backbones, what happens to an image before their first layer, and their weights in files."""

from distributed_autolora.models.classifier import Classifier, build, check_takes_images
from distributed_autolora.models.weight_files import read_checkpoint, read_weights, weights_digest
from distributed_autolora.models.weights import load_backbone, save_weights
