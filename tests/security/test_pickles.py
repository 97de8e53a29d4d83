"""Nothing from outside is executed."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from distributed_autolora.data.preparation.cub_and_dogs import dogs
from distributed_autolora.data.preparation.flags import Cifar10, Dogs
from distributed_autolora.data.preparation.torchvision_datasets import cifar
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.training.checkpoint import TrainingState
from tests.models.checkpoints import Payload
from tests.security.watching import flags_of, look_at_inputs, replace_value
from tests.training.tasks import write_task


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that a payload would create; the payload is seen to work first."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()
    return tmp_path / "executed"


def test_a_pickle_as_weights_is_refused_before_a_run_starts(tmp_path: Path, mark: Path) -> None:
    task, weights = write_task(tmp_path / "task", train=130), tmp_path / "weights.pth"
    torch.save({"state_dict": {}, "epoch": Payload(mark)}, weights)
    with pytest.raises(UserError, match="without executing code from it"):
        look_at_inputs(flags_of(task, "--model.weights", str(weights)))
    with pytest.raises(UserError, match="also give"):
        look_at_inputs(flags_of(task, "--model.weights", str(weights), "--model.allow-pickle"))
    assert not mark.exists()


def _pickled(mark: Path) -> bytes:
    return pickle.dumps(Payload(mark))


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_pickle_in_a_checkpoint_is_not_executed(tmp_path: Path, mark: Path, name: str) -> None:
    TrainingState({"w": torch.ones(1)}, {}, {}, [], {}).save(tmp_path)
    TrainingState.load(tmp_path)
    for write in (torch.save, lambda payload, file: file.write_bytes(pickle.dumps(payload))):
        write(Payload(mark), tmp_path / name)
        with pytest.raises(UserError, match="cannot be read"):
            TrainingState.load(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "history.json", "result.json"])
def test_a_pickle_in_a_run_folder_is_not_executed(tmp_path: Path, mark: Path, name: str) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    tag = f"!!python/object/apply:builtins.open ['{mark}', 'w']\n".encode()
    for content in (_pickled(mark), tag):
        (folder.path / name).write_bytes(content)
        with pytest.raises(UserError):
            folder.config() if name == "config.yaml" else folder.read(name)
    assert not mark.exists()


def test_a_pickle_as_data_is_not_executed(tmp_path: Path, mark: Path) -> None:
    task, of_numpy = write_task(tmp_path / "task", train=130), io.BytesIO()
    train, sound = Path(task, "train.parquet"), Path(task, "train.parquet").read_bytes()
    np.save(of_numpy, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    for poison in (
        lambda: train.write_bytes(_pickled(mark)),
        lambda: replace_value(train, 7, "image", _pickled(mark)),
        lambda: replace_value(train, 0, "image", of_numpy.getvalue()),
    ):
        train.write_bytes(sound)
        poison()
        with pytest.raises(UserError, match=r"train\.parquet|row"):
            look_at_inputs(flags_of(task))
    assert not mark.exists()


def test_pickles_among_the_sources_of_a_task_are_not_executed(tmp_path: Path, mark: Path) -> None:
    batches = tmp_path / "cifar" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (batches / name).write_bytes(_pickled(mark))
    stanford = tmp_path / "dogs"
    stanford.mkdir()
    with tarfile.open(stanford / "lists.tar", "w") as archive:
        for name in ("train_list.mat", "test_list.mat"):
            member = tarfile.TarInfo(name)
            member.size = len(_pickled(mark))
            archive.addfile(member, io.BytesIO(_pickled(mark)))
    (stanford / "images.tar").write_bytes((stanford / "lists.tar").read_bytes())
    with pytest.raises(UserError, match="their MD5 differs"):
        cifar(Cifar10(source=tmp_path / "cifar", output=""))
    with pytest.raises(UserError, match="cannot be read"):
        dogs(Dogs(source=stanford, output=""))
    assert not mark.exists()
