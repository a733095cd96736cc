"""The layer store: what has its name is whole, read-only, and made of files, folders and links alone."""

import os
import socket
import threading
from pathlib import Path

import pytest

from function_service.layers.store import LayerStore
from pilotlight.problems import Problem


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    (tmp_path / "layers").mkdir()
    return LayerStore(tmp_path / "layers")


def tree(tmp_path: Path, name: str = "tree") -> Path:
    top = tmp_path / name
    (top / "inner").mkdir(parents=True)
    (top / "inner" / "file").write_text("content")
    return top


def test_a_sealed_layer_is_there_with_what_is_known_of_it(store: LayerStore, tmp_path: Path) -> None:
    top = tree(tmp_path)
    store.seal("code-1", top, "code", "what it is")
    assert store.has("code-1")
    assert not top.exists()
    assert (store.path("code-1") / "inner/file").read_text() == "content"
    (layer,) = store.all()
    assert (layer.digest, layer.kind, layer.description) == ("code-1", "code", "what it is")


def test_a_layer_counts_for_what_it_takes_on_the_disk(store: LayerStore, tmp_path: Path) -> None:
    """A build can make files of no size that fill the disk, and files of any size that take nothing."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(100):
        (many / f"{number}").touch()
    store.seal("many", many, "code", "")
    sparse = tmp_path / "sparse"
    sparse.mkdir()
    with (sparse / "file").open("w") as file:
        file.truncate(1 << 40)
    store.seal("sparse", sparse, "code", "")
    sizes = {layer.digest: layer.size for layer in store.all()}
    assert sizes["many"] >= 100 << 10
    assert sizes["sparse"] < 1 << 20


@pytest.mark.parametrize(
    ("before", "after"), [(0o600, 0o644), (0o777, 0o755), (0o6711, 0o755), (0o000, 0o644), (0o100, 0o755)]
)
def test_modes_are_made_plain(store: LayerStore, tmp_path: Path, before: int, after: int) -> None:
    top = tree(tmp_path)
    (top / "inner/file").chmod(before)
    (top / "inner").chmod(0)
    top.chmod(0)
    store.seal("code-1", top, "code", "")
    layer = store.path("code-1")
    assert [p.stat().st_mode & 0o7777 for p in (layer, layer / "inner", layer / "inner/file")] == [
        0o755,
        0o755,
        after,
    ]


def test_links_stay_and_are_not_followed(store: LayerStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    outside.chmod(0o600)
    top = tree(tmp_path)
    for name, target in (("a", outside), ("b", tmp_path), ("c", "nowhere"), ("d", ".")):
        (top / name).symlink_to(target)
    os.link(top / "inner/file", top / "hard")
    store.seal("code-1", top, "code", "")
    assert outside.stat().st_mode & 0o777 == 0o600
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert (store.path("code-1") / "c").readlink() == Path("nowhere")


@pytest.mark.parametrize("kind", ["pipe", "socket", "link", "file"])
def test_what_is_no_tree_of_files_is_refused_and_gone(
    store: LayerStore, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tree(tmp_path)
    monkeypatch.chdir(top)  # a short path for the socket
    match kind:
        case "pipe":
            os.mkfifo("inner/odd")
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind("inner/odd")
        case "link":
            (tmp_path / "link").symlink_to(top)
            top = tmp_path / "link"
        case "file":
            top = top / "inner/file"
    with pytest.raises(Problem) as caught:
        store.seal("code-1", top, "code", "")
    assert caught.value.kind == "build-failed"
    assert not os.path.lexists(top)
    assert not store.has("code-1")
    assert list((tmp_path / "layers").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
@pytest.mark.parametrize("kind", ["file", "folder", "hard link"])
def test_what_belongs_to_somebody_else_is_refused_and_left_alone(
    store: LayerStore, tmp_path: Path, kind: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("secret")
    victim.chmod(0o640)
    top = tree(tmp_path)
    for path in (top, top / "inner", top / "inner/file"):
        os.chown(path, 12345, 12345)
    if kind == "hard link":
        os.link(victim, top / "inner/odd")
    elif kind == "file":
        (top / "inner/odd").write_text("x")
    else:
        (top / "inner/odd").mkdir()
    with pytest.raises(Problem, match="inner/odd belongs to somebody else"):
        store.seal("code-1", top, "code", "")
    assert victim.stat().st_mode & 0o777 == 0o640
    assert not store.has("code-1")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_a_sealed_layer_belongs_to_the_service(store: LayerStore, tmp_path: Path) -> None:
    top = tree(tmp_path)
    (top / "link").symlink_to("x")
    for path in (top, *top.rglob("*")):
        os.lchown(path, 12345, 12345)
    store.seal("code-1", top, "code", "")
    layer = store.path("code-1")
    assert {p.lstat().st_uid for p in (layer, *layer.rglob("*"))} == {0}


def test_sealing_what_is_there_removes_the_folder(store: LayerStore, tmp_path: Path) -> None:
    store.seal("code-1", tree(tmp_path), "code", "first")
    second = tree(tmp_path, "second")
    store.seal("code-1", second, "code", "second")
    assert not second.exists()
    assert [layer.description for layer in store.all()] == ["first"]


def test_many_who_seal_the_same_at_once_all_succeed(store: LayerStore, tmp_path: Path) -> None:
    tops = [tree(tmp_path, f"tree-{n}") for n in range(8)]
    begin = threading.Barrier(8)
    faults: list[Exception] = []

    def seal(top: Path) -> None:
        begin.wait()
        try:
            store.seal("code-1", top, "code", "")
        except Problem as problem:
            faults.append(problem)

    threads = [threading.Thread(target=seal, args=(top,)) for top in tops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert sorted(path.name for path in (tmp_path / "layers").iterdir()) == ["code-1", "code-1.note"]


def test_a_folder_that_is_not_there_is_told(store: LayerStore, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="could not be stored"):
        store.seal("code-1", tmp_path / "missing", "code", "")
    assert list((tmp_path / "layers").iterdir()) == []


def test_what_a_former_run_left_is_removed_and_layers_stay(store: LayerStore, tmp_path: Path) -> None:
    store.seal("code-1", tree(tmp_path), "code", "")
    layers = tmp_path / "layers"
    tree(layers, "0123.work")
    (layers / "0123.work/inner").chmod(0)
    (layers / "code-2.note").write_text("{}")
    store.start()
    assert sorted(path.name for path in layers.iterdir()) == ["code-1", "code-1.note"]


def test_a_work_folder_is_gone_unless_it_was_sealed(store: LayerStore, tmp_path: Path) -> None:
    with store.new() as folder:
        (folder / "x").mkdir()
    with store.new() as folder:
        (folder / "x").mkdir()
        store.seal("code-1", folder, "code", "")
    assert sorted(path.name for path in (tmp_path / "layers").iterdir()) == ["code-1", "code-1.note"]


def test_a_withdrawn_layer_is_gone_in_one_step(store: LayerStore, tmp_path: Path) -> None:
    store.seal("code-1", tree(tmp_path), "code", "")
    dying = store.withdraw("code-1")
    assert (store.has("code-1"), store.all()) == (False, [])
    assert (dying / "inner/file").exists()
    store.start()
    assert not dying.exists()


def test_a_layer_that_is_made_again_is_as_old_as_it_is(store: LayerStore, tmp_path: Path) -> None:
    store.seal("code-1", tree(tmp_path), "code", "the first")
    (first,) = store.all()
    store.remove("code-1")
    assert store.all() == []
    store.seal("code-1", tree(tmp_path), "code", "the second")
    (second,) = store.all()
    assert second.description == "the second"
    assert second.created > first.created
    assert LayerStore(tmp_path / "layers").all() == [second], "also after a restart"


@pytest.mark.parametrize("digest", ["../x", "/etc", "", ".", "code/x", "A"])
def test_digests_cannot_lead_elsewhere(store: LayerStore, tmp_path: Path, digest: str) -> None:
    top = tree(tmp_path)
    for action in (lambda: store.has(digest), lambda: store.seal(digest, top, "code", "")):
        with pytest.raises(Problem, match="not the digest of a layer"):
            action()
    assert top.exists()
