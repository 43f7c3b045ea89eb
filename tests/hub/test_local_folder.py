"""Which folder a path stands for, and what is said of one that is not a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from infinity_emb.errors import StartupError
from infinity_emb.hub.local_folder import find_folder


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A model's folder in the cache of the hub, with two snapshots."""
    folder = tmp_path / "hub" / "models--org--name"
    make_model(folder / "snapshots" / "a1")
    make_model(folder / "snapshots" / "b2")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a1")
    return folder


def test_a_folder_in_the_cache_of_the_hub_stands_for_its_snapshot(cached: Path) -> None:
    assert find_folder(str(cached)) == cached / "snapshots" / "a1"


@pytest.mark.parametrize("name", ["../../../other/snapshots/b2", "/", "b2/..", "linked"])
def test_a_snapshot_outside_of_the_folder_is_not_used(name: str, cached: Path, tmp_path: Path) -> None:
    """A copied folder could make the server load any other model of the machine."""
    make_model(tmp_path / "other")
    make_model(tmp_path / "other" / "snapshots" / "b2")
    (cached / "snapshots" / "linked").symlink_to(tmp_path / "other")
    (cached / "refs" / "main").write_text(name)
    assert find_folder(str(cached)) in {cached / "snapshots" / name for name in ("a1", "b2")}


@pytest.mark.parametrize("content", [b"a1\0", b"\xff", b"a" * 300])
def test_a_main_branch_that_names_no_file_is_skipped(content: bytes, cached: Path) -> None:
    """A NUL raised a ValueError, and so did bytes that are not UTF-8."""
    (cached / "refs" / "main").write_bytes(content)
    (cached / "snapshots" / "gone").symlink_to(cached / "nowhere")
    assert find_folder(str(cached)) in {cached / "snapshots" / name for name in ("a1", "b2")}


def test_a_snapshot_that_is_a_link_out_of_the_folder_is_refused_with_its_target(tmp_path: Path) -> None:
    target = make_model(tmp_path / "disk" / "a1")
    folder = tmp_path / "models--org--name"
    folder.mkdir()
    (folder / "snapshots").symlink_to(target.parent)
    with pytest.raises(
        StartupError, match="snapshot 'a1' is a link out of this folder; give its target "
    ) as caught:
        find_folder(str(folder))
    assert repr(str(target)) in str(caught.value)


def test_without_a_main_branch_any_whole_snapshot_is_used(cached: Path) -> None:
    (cached / "refs" / "main").write_text("gone")
    assert find_folder(str(cached)) in {cached / "snapshots" / name for name in ("a1", "b2")}
    (cached / "refs" / "main").unlink()
    (cached / "snapshots" / "b2" / "config.json").unlink()
    assert find_folder(str(cached)) == cached / "snapshots" / "a1"


def test_the_cache_itself_is_refused_with_the_model_id(cached: Path) -> None:
    with pytest.raises(StartupError, match="is the cache of the hub; give the model id, such as 'org/name'"):
        find_folder(str(cached.parent))


def test_a_folder_of_models_is_refused_with_their_names(tmp_path: Path) -> None:
    make_model(tmp_path / "first")
    make_model(tmp_path / "second")
    with pytest.raises(StartupError, match="give one of them: first, second"):
        find_folder(str(tmp_path))


def test_gguf_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(StartupError, match=r"GGUF files, which llama\.cpp computes"):
        find_folder(str(tmp_path))


def test_an_adapter_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert find_folder(str(tmp_path)) == tmp_path


def test_a_name_that_is_no_path_is_left_to_the_hub() -> None:
    assert find_folder("org/no-such-model") is None
