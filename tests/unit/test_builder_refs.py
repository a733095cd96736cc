"""What a push means for its app."""

from builder.refs import Decision, decide
from builder.repository import ZERO, Branches, Update

A, B = "a" * 40, "b" * 40
NONE = Branches({}, None)
MAIN = Branches({"main": A}, "main")


def update(branch: str, old: str = ZERO, new: str = B) -> Update:
    return Update(old, new, f"refs/heads/{branch}")


def test_the_first_push_deploys_main_or_else_its_first_branch():
    assert decide("x", [update("dev"), update("main")], NONE).deploy == update("main")
    decision = decide("x", [update("dev"), update("idea")], NONE)
    assert (decision.deploy, decision.first) == (update("dev"), "dev")


def test_tags_alone_make_no_branch_the_deployed_one():
    decision = decide("x", [Update(ZERO, A, "refs/tags/v1")], NONE)
    assert decision == Decision(notes=("The tag 'v1' is stored, but not deployed: push a branch for that.",))


def test_later_pushes_deploy_the_same_branch():
    assert decide("x", [update("main", A)], MAIN) == Decision(deploy=update("main", A))
    assert decide("x", [update("dev")], MAIN).deploy is None


def test_a_branch_that_moved_is_refused():
    decision = decide("x", [update("main", ZERO)], MAIN)
    assert decision.refusal is not None
    assert decision.refusal.startswith("The branch 'main' has moved meanwhile")


def test_deleting_what_is_deployed_is_refused():
    refusal = decide("x", [update("main", A, ZERO)], MAIN).refusal
    assert refusal is not None
    assert "`pilotlight delete`" in refusal
