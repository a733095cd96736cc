"""Folders that builds leave are removed, whatever permissions they have."""

import os

from builder import folders


def as_ordinary_user(what) -> int:
    """Do something in a process that is not root's, and return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(64321)
                os.setuid(64321)
            what()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_folder_without_permissions_is_removed(tmp_path):
    work = tmp_path / "work"
    (work / "a/b").mkdir(parents=True)
    (work / "a/b/file").write_text("x")
    (work / "link").symlink_to("/etc")
    if os.geteuid() == 0:
        for place in (tmp_path, work, work / "a", work / "a/b", work / "a/b/file"):
            os.chown(place, 64321, 64321)
        for parent in tmp_path.parents[:-1]:
            parent.chmod(parent.stat().st_mode | 0o011)
    (work / "a/b").chmod(0)
    (work / "a").chmod(0o500)
    assert as_ordinary_user(lambda: folders.remove(work)) == 0
    assert not work.exists()


def test_what_stays_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("shutil.rmtree", lambda folder, ignore_errors: None)
    folders.remove(tmp_path)
    assert "can't be removed" in caplog.text
