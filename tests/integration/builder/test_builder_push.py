"""What a pusher sees, and what a push leaves behind: real git against the whole builder."""

import re
from urllib.parse import quote

import msgspec
from toy import INTERPRETER, TOY

from builder import assemble
from builder.detect import Found
from builder.source import Tree
from function_service.contract import Actor


def plain(lines):
    """Return the lines with times, commits and revisions blotted out."""
    text = "\n".join(lines)
    text = re.sub(r"\d+\.\d s", "T s", text)
    text = re.sub(r"\d+ ms", "T ms", text)
    text = re.sub(r"\br[0-9a-f]{12}\b", "REV", text)
    return re.sub(r"\b[0-9a-f]{10}\b", "COMMIT", text).split("\n")


async def test_a_first_push_makes_the_app_and_ends_with_the_url(platform):
    work = await platform.work("hello")
    commit = await work.commit({"handler.toy": "hi"})
    code, lines = await work.push()
    assert code == 0
    assert plain(lines) == [
        "Pilotlight deploys 'hello' at COMMIT (main)",
        "hello: toy1.0, handler.toy",
        "  Copy the files",
        "  done in T s",
        "  starts, in T ms: revision REV",
        "Live now:",
        f"  hello  {platform.address}/function/hello (with a key)",
    ]
    assert platform.builds.live["hello"][0] == commit
    assert platform.repositories() == ["hello.git"]


REJECTED = "The push is rejected, and nothing was changed: what ran before still runs."


async def rejected(platform, work, *refs):
    """Push, see that it is refused and leaves nothing, and return what the pusher was told."""
    before = dict(platform.builds.live)
    code, lines = await work.push(*refs)
    assert code == 1
    assert lines[-1] == REJECTED
    assert platform.builds.live == before
    assert platform.leftovers() == []
    if lines[0].startswith("Pilotlight deploys"):
        lines = lines[1:]
    return plain(lines[:-1])


async def test_a_push_without_functions_is_refused_and_leaves_no_repository(platform):
    work = await platform.work("empty")
    await work.commit({"README.md": "nothing here", ".hidden/handler.toy": "x"})
    assert await rejected(platform, work) == [
        (
            "There is no function in this commit: no runtime recognises its root or one of its folders. There are "
            "runtimes for Ghost, Toy. Make a function with `pilotlight new`, or name its folder, runtime and "
            "handler in pilotlight.toml."
        )
    ]
    assert platform.repositories() == []


async def test_an_empty_tree_is_a_commit_without_functions(platform):
    work = await platform.work("empty")
    await work.commit({})
    assert (await rejected(platform, work))[0].startswith("There is no function in this commit")


async def test_a_push_with_nothing_to_push_makes_no_repository(platform):
    work = await platform.work("empty")
    code, output = await work.try_git("push", work.url, "main")
    assert code == 1
    assert "src refspec main does not match any" in output
    code, output = await work.try_git("push", "--all", work.url)
    assert platform.repositories() == []


async def test_a_dry_run_makes_no_repository(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "hi"})
    code, _ = await work.try_git("push", "--dry-run", work.url, "main")
    assert code == 0
    assert platform.repositories() == []


async def test_an_unchanged_commit_is_up_to_date(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "hi"})
    await work.push()
    code, output = await work.try_git("push", work.url, "main")
    assert code == 0
    assert output.strip() == "Everything up-to-date"
    assert platform.builds.activations == 1


async def test_every_mistake_of_a_manifest_is_told_at_once(platform):
    work = await platform.work("shop")
    await work.commit(
        {
            "a/handler.toy": "x",
            "pilotlight.toml": '[functions.a]\nmemroy = "1GB"\nmemory = "lots"\n[functions.B]\n[function.c]\n',
        }
    )
    assert await rejected(platform, work) == [
        "pilotlight.toml is not right:",
        (
            "  functions.a.memroy: there is no such key. Did you mean 'memory'? Expected one of path, runtime, "
            "handler, image, memory, cpu, timeout, concurrency, min_instances, max_instances, keep_alive, "
            "access, egress, env, secrets."
        ),
        '  functions.a.memory = "lots": expected a size from 16MB to 16GB, in quotes.',
        (
            "  functions.B: 'B' can't name a function. Expected lower-case letters, digits and inner dashes, a "
            "letter first, at most 63 characters."
        ),
        "  function: there is no such key. Did you mean 'functions'? Expected [functions.NAME] tables.",
    ]


async def test_an_unknown_runtime_and_a_missing_one_are_told(platform):
    work = await platform.work("shop")
    await work.commit(
        {
            "a/handler.toy": "x",
            "b/handler.ghost": "x",
            "pilotlight.toml": '[functions.a]\nruntime = "tory"\n',
        }
    )
    assert await rejected(platform, work) == [
        (
            "pilotlight.toml: functions.a.runtime = \"tory\": there is no such runtime. Did you mean 'toy'? "
            "Expected one of ghost, toy."
        ),
        (
            "Function 'b' needs ghost, which this machine does not have (it has toy1.0). Install it, or set "
            "functions.b.runtime in pilotlight.toml."
        ),
    ]


async def test_a_build_that_fails_rejects_the_push_and_leaves_what_runs(platform):
    work = await platform.work("hello")
    first = await work.commit({"handler.toy": "hi"})
    await work.push()
    await work.commit({"build.sh": "echo compiling; echo 'no such header' >&2; exit 3"})
    assert await rejected(platform, work) == [
        "hello: toy1.0, handler.toy",
        "  Copy the files",
        "  done in T s",
        "  Run build.sh",
        "    compiling",
        "    no such header",
        (
            "Function 'hello' can't be built: 'Run build.sh' failed (exit code 3). What it printed stands above. "
            "Mend it, commit, and push again."
        ),
    ]
    assert await work.git("ls-remote", work.url, "main") == f"{first}\trefs/heads/main"


async def test_a_function_that_does_not_start_is_told_with_what_it_printed(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "broken"})
    assert (await rejected(platform, work))[-4:] == [
        "  it printed:",
        "    Traceback:",
        "      line 1",
        "Function 'hello' does not start: NameError: name 'x' is not defined.",
    ]
    assert platform.repositories() == []


async def test_a_name_that_another_app_owns_is_refused(platform):
    one, two = await platform.work("one"), await platform.work("two")
    await one.commit({"mail/handler.toy": "x"})
    await one.push()
    await two.commit({"mail/handler.toy": "y"})
    assert await rejected(platform, two) == ["The function 'mail' belongs to the app 'one'. Rename it."]
    assert platform.repositories() == ["one.git"]


async def test_only_what_changed_is_built_and_what_vanished_is_removed(platform):
    work = await platform.work("shop")
    await work.commit({"a/handler.toy": "a", "b/handler.toy": "b", "c/handler.toy": "c"})
    await work.push()
    before = platform.builds.ids("shop")
    platform.builds.verified.clear()
    await work.commit({"b/handler.toy": "b2", "c/handler.toy": None, "d.txt": "no function's"})
    code, lines = await work.push()
    assert code == 0
    assert plain(lines)[1:6] == [
        "a: unchanged",
        "b: toy1.0, handler.toy",
        "  Copy the files",
        "  done in T s",
        "  starts, in T ms: revision REV",
    ]
    assert "c: is not in this commit, and will be removed" in lines
    after = platform.builds.ids("shop")
    assert after.keys() == {"a", "b"}
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]
    assert platform.builds.verified == ["b"]


async def test_a_change_of_the_manifest_alone_makes_a_revision_without_a_build(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "hi"})
    await work.push()
    jobs, before = len(platform.builds.jobs), platform.builds.ids("hello")
    await work.commit({"pilotlight.toml": '[functions.hello]\nmemory = "256MB"\naccess = "public"\n'})
    code, lines = await work.push()
    assert code == 0
    assert "  code: kept (no file changed)" in lines
    assert lines[-1] == f"  hello  {platform.address}/function/hello"
    assert len(platform.builds.jobs) == jobs
    assert platform.builds.ids("hello") != before
    # the same content has the same id, also when it was made anew
    await work.commit({"pilotlight.toml": None})
    await work.push()
    assert platform.builds.ids("hello") == before


async def test_equal_dependencies_are_installed_once_and_shared(platform):
    work = await platform.work("shop")
    await work.commit(
        {"a/handler.toy": "a", "a/needs.txt": "left-pad\n", "b/handler.toy": "b", "b/needs.txt": "left-pad\n"}
    )
    code, lines = await work.push()
    assert code == 0
    assert [line for line in lines if "left-pad" in line or "needs.txt" in line] == [
        "  Install needs.txt",
        "    Fetching left-pad",
        "  dependencies: kept (needs.txt did not change)",
    ]
    a, b = platform.builds.live["shop"][1]
    assert a.dependencies == b.dependencies is not None
    (install,) = [job for job in platform.builds.jobs if job.egress]
    assert install.egress == ("pypi.org:443",)
    assert install.env == {"HOME": "/tmp", "SSL_CERT_FILE": "/certificates"}
    assert all(job.env == {"HOME": "/tmp"} for job in platform.builds.jobs if job is not install)


COMPILED = '[functions.NAME]\npath = "."\nruntime = "toy"\nhandler = "compiled.toy"\n'


async def test_code_that_only_loading_compiles_is_loaded_once_and_kept_in_its_layer(platform):
    files = {"compiled.toy": "code ", "needs.txt": "left-pad\n"}
    work = await platform.work("first")
    await work.commit(files | {"pilotlight.toml": COMPILED.replace("NAME", "first")})
    code, lines = await work.push()
    assert code == 0
    assert [line.strip() for line in plain(lines)][-7:-3] == [
        "Copy the files",
        "done in T s",
        "Compile ahead",
        "done in T s",
    ]
    revision = platform.builds.live["first"][1][0]
    layer = platform.data.layers / revision.code
    assert (layer / ".cache/made").read_text() == "code 1\n"
    loading = platform.builds.jobs[-1]
    assert {mount.target: mount.writable for mount in loading.mounts} == {
        "/function": False,
        "/dependencies": False,
        "/build": True,
    }
    assert not (platform.data.layers / revision.dependencies / ".cache").exists()

    other = await platform.work("second")
    await other.commit(files | {"pilotlight.toml": COMPILED.replace("NAME", "second")})
    code, lines = await other.push()
    assert code == 0
    assert "  code: kept (no file changed)" in lines


async def test_code_that_cannot_be_loaded_in_a_build_goes_on_without_a_cache(platform):
    work = await platform.work("hello")
    await work.commit({"compiled.toy": "unloadable", "pilotlight.toml": COMPILED.replace("NAME", "hello")})
    code, lines = await work.push()
    assert code == 0
    assert "    unloadable" in lines
    assert "  goes on without (exit code 1)" in lines
    layer = platform.data.layers / platform.builds.live["hello"][1][0].code
    assert sorted(path.name for path in layer.iterdir()) == ["compiled.toy"]


def test_what_has_a_part_in_compiled_code_has_one_in_its_address(tmp_path):
    tree = Tree({"compiled.toy": "1", "compiled2.toy": "2", "handler.toy": "3"}, {}, None)

    def digest(handler, dependencies):
        found = Found("x", ".", tmp_path, TOY, INTERPRETER, handler, {})
        return assemble.plan(found, tree, dependencies).digest

    assert digest("compiled.toy", "d1") != digest("compiled.toy", "d2")
    assert digest("compiled.toy", "d1") != digest("compiled2.toy", "d1")
    assert digest("handler.toy", "d1") == digest("handler.toy", "d2")


async def test_other_branches_and_tags_are_stored_and_not_deployed(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "hi"})
    await work.push()
    await work.git("branch", "idea")
    await work.git("tag", "v1")
    code, lines = await work.push("idea", "v1")
    assert code == 0
    assert lines == [
        "The branch 'idea' is stored, but not deployed: the branch 'main' is.",
        "The tag 'v1' is stored, but not deployed: the branch 'main' is.",
    ]
    code, lines = await work.push(":idea")
    assert (code, lines) == (0, ["The branch 'idea' is deleted; nothing else changes."])
    assert platform.builds.activations == 1


async def test_the_branch_of_the_first_push_is_the_deployed_one(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "hi"})
    await work.git("branch", "-m", "trunk")
    code, _ = await work.push("trunk")
    assert code == 0
    await work.git("branch", "main")
    _, lines = await work.push("main")
    assert lines == ["The branch 'main' is stored, but not deployed: the branch 'trunk' is."]
    clone = await work.git("ls-remote", "--symref", work.url, "HEAD")
    assert clone.startswith("ref: refs/heads/trunk\tHEAD")


async def test_main_is_deployed_when_the_first_push_has_several_branches(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "hi"})
    await work.git("branch", "another")
    code, lines = await work.push("another", "main")
    assert code == 0
    assert "The branch 'another' is stored, but not deployed: the branch 'main' is." in lines


async def test_the_deployed_branch_cant_be_deleted(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "hi"})
    await work.push()
    assert await rejected(platform, work, ":main") == [
        (
            "The branch 'main' is the one that is deployed, so it can't be deleted here. `pilotlight delete` "
            "removes a function, and the app 'hello' with its last one."
        )
    ]


async def test_a_forced_push_deploys_the_new_commit(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "one"})
    await work.push()
    await work.git("commit", "-q", "--amend", "-m", "other")
    await work.commit({"handler.toy": "two"})
    code, output = await work.try_git("push", work.url, "main")
    assert code == 1
    assert "fetch first" in output or "non-fast-forward" in output
    code, _ = await work.push("+main")
    assert code == 0
    assert platform.builds.live["hello"][0] == await work.git("rev-parse", "HEAD")


async def test_a_symbolic_link_that_leaves_is_refused(platform):
    work = await platform.work("shop")
    await work.commit({"a/handler.toy": "x", "secret.txt": "x"})
    (work.folder / "a/up").symlink_to("../secret.txt")
    await work.commit({})
    assert await rejected(platform, work) == [
        "'a/up' is a symbolic link that leads out of the function 'a'. Put a copy of its target there."
    ]
    (work.folder / "a/up").unlink()
    (work.folder / "a/up").symlink_to("/etc/passwd")
    (work.folder / "far").symlink_to("a/../../../x")
    await work.commit({})
    assert await rejected(platform, work) == [
        "'a/up' is a symbolic link that leads out of the repository. Put a copy of its target there.",
        "'far' is a symbolic link that leads out of the repository. Put a copy of its target there.",
    ]


async def test_links_that_stay_inside_and_executable_bits_are_kept(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "x", "data/one": "1", "run": "#!/bin/sh"})
    (work.folder / "run").chmod(0o755)
    (work.folder / "data/link").symlink_to("../data/one")
    await work.commit({})
    code, _ = await work.push()
    assert code == 0
    layer = platform.data.layers / platform.builds.live["hello"][1][0].code
    assert (layer / "data/link").readlink().as_posix() == "../data/one"
    assert (layer / "run").stat().st_mode & 0o777 == 0o755
    assert (layer / "handler.toy").stat().st_mode & 0o777 == 0o644


async def test_a_submodule_is_refused(platform):
    work = await platform.work("hello")
    commit = await work.commit({"handler.toy": "x"})
    await work.git("update-index", "--add", "--cacheinfo", f"160000,{commit},vendor")
    await work.git("commit", "-q", "-m", "submodule")
    assert await rejected(platform, work) == ["'vendor' is a submodule. Commit its files in its place."]


async def test_a_pointer_of_git_lfs_is_refused(platform):
    work = await platform.work("hello")
    await work.commit(
        {
            "handler.toy": "x",
            "model.bin": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        }
    )
    assert await rejected(platform, work) == [
        "'model.bin' is a pointer of git-lfs, not the file itself. Commit the file itself."
    ]


async def test_names_that_differ_only_in_case_are_refused(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "x", "Data/a": "1", "data/b": "2"})
    assert await rejected(platform, work) == [
        (
            "'data' and 'Data' differ only in case or in how Unicode spells them, so that they are one file on "
            "many machines. Rename one of them."
        )
    ]
    await work.commit({"Data/a": None, "data/b": None, "caf\u00e9": "1", "cafe\u0301": "2"})
    assert "differ only in case or in how Unicode spells them" in (await rejected(platform, work))[0]


async def test_what_a_build_prints_cant_change_the_pushers_screen(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "x", "build.sh": r"printf '\033[2Jgone\r\nTab\there\n'"})
    _, lines = await work.push()
    assert "     [2Jgone" in lines
    assert "    Tab here" in lines


async def test_a_problem_after_the_ref_moved_is_told_and_mended_at_the_next_chance(platform):
    from pilotlight.problems import Problem

    work = await platform.work("hello")
    await work.commit({"handler.toy": "x"})
    platform.builds.refuse_activation = Problem("internal", "The disk is full.")
    code, lines = await work.push()
    assert code == 0
    assert lines[-2:] == [
        "The commit is stored, but can't go live: The disk is full.",
        "It is tried again when Pilotlight starts the next time.",
    ]


async def test_a_deploy_is_made_in_the_name_of_who_pushed(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "hi"})
    by = Actor(key="k1", name="laptop of Ö", address="192.0.2.1", request_id="r1")
    header = f"http.extraHeader=Pilotlight-By: {quote(msgspec.json.encode(by))}"
    code, _ = await work.try_git("-c", header, "push", work.url, "main")
    assert code == 0
    assert platform.builds.deployers == [by]


IN_IMAGE = '[functions.boxed]\npath = "."\nimage = "toys:1"\n'


async def test_a_function_in_an_image_keeps_what_its_name_meant_at_the_push(platform):
    platform.builds.images["toys:1"] = "sha256:one"
    work = await platform.work("boxed")
    await work.commit({"handler.toy": "hi", "pilotlight.toml": IN_IMAGE})
    code, lines = await work.push()
    assert code == 0
    assert plain(lines)[1:3] == ["  Pulling toys:1", "boxed: toy2.0 in toys:1, handler.toy"]
    (first,) = platform.builds.live["boxed"][1]
    assert (first.image.id, first.image.env, first.config.runtime) == ("sha256:one", {"A": "b"}, "toy2.0")
    await work.commit({"README.md": "another commit"})
    platform.builds.images["toys:1"] = "sha256:two"
    assert (await work.push())[0] == 0
    (second,) = platform.builds.live["boxed"][1]
    assert second.image.id == "sha256:two"
    assert second.id != first.id
    assert second.code != first.code  # what is built in another image may be other code


async def test_an_image_that_cannot_be_had_rejects_the_push(platform):
    work = await platform.work("boxed")
    await work.commit({"handler.toy": "hi", "pilotlight.toml": IN_IMAGE})
    lines = await rejected(platform, work)
    assert lines == ["Function 'boxed' can't run in the image toys:1: There is no image toys:1."]


async def test_a_function_is_built_by_the_file_that_makes_its_image(platform):
    work = await platform.work("whole")
    await work.commit({"Toyfile": "RUN something", "src/handler.toy": "part of it"})
    code, lines = await work.push()
    assert code == 0
    assert plain(lines)[1:3] == ["whole: toy, by its Toyfile", "    Step: RUN something"]
    (first,) = platform.builds.live["whole"][1]
    assert (first.image.command, first.config.handler) == (("run",), "Toyfile")
    assert platform.builds.jobs == []
    await work.commit({"src/handler.toy": "changed"})
    assert (await work.push())[0] == 0
    (second,) = platform.builds.live["whole"][1]
    assert second.image.id != first.image.id
    assert second.code == first.code
    assert platform.leftovers() == []


async def test_an_image_that_cannot_be_built_rejects_the_push_with_the_cause(platform):
    work = await platform.work("whole")
    await work.commit({"Toyfile": "RUN broken"})
    lines = await rejected(platform, work)
    assert lines == [
        "whole: toy, by its Toyfile",
        "    Step: RUN broken",
        "Function 'whole' can't be built by its Toyfile: the step is broken.",
    ]


async def test_a_link_out_of_the_folder_of_a_function_with_an_image_of_its_own_is_refused(platform):
    work = await platform.work("app")
    (work.folder / "a").mkdir()
    (work.folder / "a/Toyfile").write_text("RUN x")
    (work.folder / "a/up").symlink_to("../b/secret")
    await work.commit({"b/handler.toy": "hi", "b/secret": "x"})
    lines = await rejected(platform, work)
    assert lines == [
        "'a/up' is a symbolic link that leads out of the function 'a'. Put a copy of its target there."
    ]
    assert platform.builds.built == []
