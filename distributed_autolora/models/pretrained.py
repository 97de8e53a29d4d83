"""A model as a folder that other programs read: safetensors, config.json and a card."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from torch import nn

from distributed_autolora.errors import UserError
from distributed_autolora.files import read_json, write_json, write_text, writing
from distributed_autolora.models.classifier import Classifier
from distributed_autolora.models.export import WEIGHTS_FILE
from distributed_autolora.models.own_backbone import register_backbone
from distributed_autolora.models.portable import NetworkDescription, PortableModel, stated_classes
from distributed_autolora.models.weight_files import read_checkpoint
from distributed_autolora.models.weights import save_weights
from distributed_autolora.records import from_json, to_json

CONFIG_FILE, CARD_FILE = "config.json", "README.md"
_CARD = """# A robust image classifier

Network: `{backbone}`, {num_classes} classes. It takes float32 images [n, {channels}, H, W] in [0, 1] and normalises
them with mean {mean} and std {std}.

```python
import distributed_autolora as autolora

model = autolora.load_model("{folder}")
logits = model(images)
```

`model.safetensors` is the state dict of the bare network: it takes normalised images.
"""


class PretrainedClassifier(Classifier):
    """A finished classifier, in eval mode: images in [0, 1] in, logits out.

    Attributes:
        description: its network.
        class_names: of the outputs, in their order; empty: unknown.
        about: facts that config.json keeps, such as norm and epsilon of its training.
        card: Markdown text for its README.md; empty: a short one is made.
    """

    def __init__(self, model: PortableModel, about: dict[str, Any] | None = None, card: str = "") -> None:
        built, described = model.build(), model.description
        head, size = built.head_name, built.fixed_size
        super().__init__(
            built.backbone, described.mean, described.std, described.input_size, head_name=head, fixed_size=size
        )
        self.description, self.class_names = described, model.class_names
        self.about, self.card = dict(about or {}), card
        self.eval()

    def portable(self) -> PortableModel:
        """Returns description, weights and class names."""
        return PortableModel(self.description, self.backbone.state_dict(), self.class_names)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes model.safetensors, config.json and README.md to a folder, which is made; `load_model` inverts it.

        Raises:
            StorageError: when a file cannot be written.
        """
        path = Path(folder).expanduser()
        values = asdict(self.description)
        text = _CARD.format(**values, channels=len(self.description.mean), folder=path.name)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        save_weights(self.backbone.state_dict(), path / WEIGHTS_FILE, self.portable().metadata())
        write_json(path / CONFIG_FILE, {**to_json(self.description), "about": self.about})
        write_text(path / CARD_FILE, self.card or text)
        return path

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, backbone: nn.Module | None = None, head: str | None = "fc") -> Self:
        """Reads what `save_pretrained` wrote; a network of one's own is given anew.

        Raises:
            UserError: for a missing or damaged file, or weights of another network.
        """
        path = Path(folder).expanduser()
        try:
            values = read_json(path / CONFIG_FILE)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} holds no model: {CONFIG_FILE} cannot be read ({error}).") from None
        about, card = values.pop("about", {}), path / CARD_FILE
        described = from_json(NetworkDescription, values, str(path / CONFIG_FILE))
        if backbone is not None and (name := register_backbone(backbone, head)) != described.backbone:
            raise UserError(f"{path} is a model of {described.backbone}, not of {name}.")
        checkpoint = read_checkpoint(path / WEIGHTS_FILE)
        model = PortableModel(described, checkpoint.state, stated_classes(checkpoint.metadata))
        return cls(model, about, card.read_text() if card.is_file() else "")


def load_model(
    folder: str | Path, *, backbone: nn.Module | None = None, head: str | None = "fc"
) -> PretrainedClassifier:
    """Reads the folder of `PretrainedClassifier.save_pretrained`; the model is in eval mode.

    Args:
        backbone: the module of a model that was trained from one's own `nn.Module`, and its `head`; else None.

    Raises:
        UserError: for a missing or damaged file, or weights of another network.
    """
    return PretrainedClassifier.from_pretrained(folder, backbone=backbone, head=head)
