"""A dataset that was checked is not checked again, unless its files or the choice of rows changed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.runs.checked_data import check_data
from tests.training.tasks import SIZE, changed, small_config, write_task


def test_what_was_checked_is_known_without_the_images_for_the_same_files_and_rows_only(tmp_path: Path) -> None:
    folder, kept = write_task(tmp_path / "task", train=60), tmp_path / "kept"
    config = changed(small_config(folder), data={"digest": "of these files"})
    few = check_data(config, folder, kept)
    assert not kept.exists(), "a small dataset is checked in no time"
    found = check_data(config, folder, kept, many=60)
    assert (found.classes, found.size, found.train + found.val) == (3, (SIZE, SIZE), 60)
    assert found == few
    shutil.rmtree(folder)
    other_rate = replace(config, optimization=replace(config.optimization, lr=0.1))
    assert check_data(other_rate, folder, kept) == found
    for values in ({"digest": "of others"}, {"val_fraction": 0.3}, {"train_images": 50}, {"image_size": 8}):
        with pytest.raises(UserError, match="does not exist"):
            check_data(changed(config, data=values), folder, kept)
    with pytest.raises(UserError, match="does not exist"):
        check_data(config, folder, None)
    (file,) = kept.iterdir()
    file.write_text(file.read_text()[:-20])
    with pytest.raises(UserError, match="does not exist"):
        check_data(config, folder, kept)
