"""Functions and classes that a release has moved to another file: followed where that is beyond doubt, else named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import authoring_support as support
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln import catalog
from kiln.patching.outcomes import Outcome
from kiln.port import follow, run
from kiln.port.attempt import Attempt, Between, attempt
from kiln.port.run import Ported
from kiln.tasks.show_port import show_port

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

A, B, C = "vllm/a.py", "vllm/sub/b.py", "vllm/c.py"
HEAD = '"""A module."""\n\nimport os\n\nLIMIT = 4\n\n\n'


def function(name: str, step: str = "step", count: int = 9) -> str:
    return f"def {name}(x):\n" + "".join(f"    {step}_{n}(x)\n" for n in range(count)) + "    return x\n\n\n"


REAL, OTHER, KEPT = function("real"), function("other", "do"), function("kept", "act")
PRE = HEAD + OTHER + REAL
THERE = "import os\n\nLIMIT = 4\n\n\n" + KEPT


def changed(text: str, old: str = "step_4(x)", new: str = "step_4(x + 1)") -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


def port(
    pre: Mapping[str, str | None],
    post: Mapping[str, str | None],
    new: Mapping[str, str],
    old: Mapping[str, str] | None = None,
) -> Attempt:
    """Port an edition; `new` is the whole new release, `old` what the edition's has besides its own files."""

    def data(files: Mapping[str, str | None]) -> dict[str, bytes]:
        return {path: text.encode() for path, text in files.items() if text is not None}

    theirs: dict[str, bytes | None] = {path: data(new).get(path) for path in pre}
    between = Between(edition="0.1.0", release="0.2.0", before=lambda: data(old or {}) | data(pre))
    here, then = ({path: data(side).get(path) for path in pre} for side in (pre, post))
    return attempt(here, then, theirs, lambda: data(new), between=between)


def texts(made: Attempt) -> dict[str, str | None]:
    return {path: None if data is None else data.decode() for path, data in made.files.items()}


def doubted(new: Mapping[str, str], old: Mapping[str, str] | None = None, **sides: str) -> str:
    """Return why a change is not followed, after seeing that nothing of it went anywhere but in its own file."""
    pre = sides.get("pre", PRE)
    made = port({A: pre}, {A: sides.get("post", changed(PRE))}, new, old)
    assert not made.clean
    assert not made.merged
    assert (list(made.files), dict(made.moved), dict(made.definitions)) == ([A], {}, {})
    moved = [problem for problem in made.problems if problem.outcome is Outcome.MOVED]
    assert moved
    assert all(problem.candidates for problem in moved)
    _, _, why = moved[0].found.partition("; not followed: ")
    return why


# what is followed


def test_a_function_is_followed_to_the_file_it_went_to() -> None:
    there = THERE + REAL.replace("step_7(x)", "step_7(x, 7)") + "END = True\n"
    made = port({A: PRE}, {A: changed(PRE)}, {A: HEAD + OTHER, B: there, C: KEPT}, {B: THERE, C: KEPT})
    assert made.clean
    assert not made.merged
    assert texts(made) == {B: changed(there)}
    assert (dict(made.moved), dict(made.definitions)) == ({A: B}, {A: ("real",)})


def test_it_is_followed_to_a_new_file_and_from_one_that_is_gone() -> None:
    for rest in ({}, {A: HEAD}, {A: HEAD + OTHER + "from vllm.sub import real\n"}):
        made = port({A: PRE}, {A: changed(PRE)}, rest | {B: REAL})
        assert made.clean
        assert texts(made) == {B: changed(REAL)}


def test_what_merely_has_the_name_or_the_lines_and_was_there_before_is_no_reason() -> None:
    namesake, slow = {C: function("real", "else")}, REAL.replace("real", "slow")
    made = port({A: PRE}, {A: changed(PRE)}, {A: HEAD + OTHER, B: slow + REAL} | namesake, {B: slow} | namesake)
    assert texts(made) == {B: slow + changed(REAL)}


def test_the_rest_of_the_change_stays_where_it_is() -> None:
    post = changed(changed(changed(PRE), "do_4(x)", "do_4(x + 1)"), "import os", "import sys")
    here = (HEAD + OTHER).replace("LIMIT = 4", "LIMIT = 4\nMORE = 5")
    made = port({A: PRE}, {A: post}, {A: here, B: THERE + REAL}, {B: THERE})
    assert made.clean
    assert texts(made) == {
        A: changed(changed(here, "do_4(x)", "do_4(x + 1)"), "import os", "import sys"),
        B: THERE + changed(REAL),
    }


def test_a_class_and_a_function_go_together_in_another_order() -> None:
    kind = "class Kind:\n    a = 1\n\n" + "".join(f"    def m{n}(self):\n        return {n}\n\n" for n in range(6))
    pre = HEAD + kind + "\n" + REAL
    post = changed(changed(pre), "return 3", "return real(3)")
    there = "import os\n\n\n" + REAL + kind
    made = port({A: pre}, {A: post}, {A: HEAD, B: there})
    assert made.clean
    assert texts(made) == {B: changed(changed(there), "return 3", "return real(3)")}
    assert dict(made.definitions) == {A: ("Kind", "real")}


def test_what_the_edition_changes_there_itself_is_kept() -> None:
    """Whichever of the files comes first; and two files may send something to one."""
    for path in (B, "a.py"):
        own = changed(KEPT, "act_4(x)", "act_4(x + 1)")
        more = "import os\n\n\n" + OTHER
        made = port(
            {A: HEAD + REAL, path: KEPT, C: more},
            {A: HEAD + changed(REAL), path: own, C: changed(more, "do_4(x)", "do_4(x + 1)")},
            {A: HEAD, path: OTHER + KEPT + REAL, C: "import os\n"},
        )
        assert made.clean
        assert texts(made) == {path: changed(OTHER, "do_4(x)", "do_4(x + 1)") + own + changed(REAL)}
        assert dict(made.moved) == {A: path, C: path}


def test_a_change_that_the_moved_function_has_already_is_merged() -> None:
    made = port({A: PRE}, {A: changed(PRE)}, {A: HEAD + OTHER, B: changed(REAL)})
    assert (made.clean, made.merged, texts(made)) == (True, True, {B: changed(REAL)})


def test_nothing_is_looked_for_while_nothing_is_missing() -> None:
    def never() -> dict[str, bytes]:
        raise AssertionError("all files were asked for, and none is missing")

    theirs = PRE.replace("step_4(x)", "step_4(x + 2)").encode()
    between = Between(before=never)
    (problem,) = attempt({A: PRE.encode()}, {A: changed(PRE).encode()}, {A: theirs}, never, between=between).problems
    assert problem.outcome is Outcome.CONFLICT


def test_where_it_came_from_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    found = Ported(
        patch="toy", to="0.2.0", origin="0.1.0", state="fits", files=(A, B), moved={A: B}, definitions={A: ("real",)}
    )
    show_port(found, json=False)
    assert f"real moved from {A}" in capsys.readouterr().out
    show_port(found, json=True)
    assert '"definitions"' in capsys.readouterr().out


def test_through_the_gate_a_followed_function_becomes_an_edition_of_its_new_file(toy_catalog: Path) -> None:
    described, probe = (toy_catalog / "patches/toy" / name for name in ("patch.yaml", "probe.py"))
    described.write_text(described.read_text().replace("==0.31.0", ">=0.31.0"))
    loaded = support.load(toy_catalog)
    probe.write_text(support.PROBE.replace("/vllm/twins.py", "/vllm/second.py"))
    own, second = support.BEFORE.split(b"def second")[0] + b"END = True\n", support.TWIN.replace(b"NAME", b"second")
    support.hold(loaded.root, support.SOURCES | {support.PATH: own, "vllm/second.py": second}, "0.32.0")
    made = run.port(loaded, run.Wanted(patch="toy", to="0.32.0"), support.QUIET, prove=support.probed)
    assert (made.state, made.files) == ("written", ("vllm/second.py",))
    assert (dict(made.moved), dict(made.definitions)) == (
        {support.PATH: "vllm/second.py"},
        {support.PATH: ("second",)},
    )
    assert catalog.load(toy_catalog).patches["toy"].editions["0.32.0"].files.keys() == {"vllm/second.py"}


STEPS = st.sets(st.integers(0, 8), max_size=2)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.tuples(STEPS, STEPS),
    own=st.sampled_from([{}, {A: HEAD + OTHER}]),
    order=st.permutations(["import os\n\n\n", OTHER, KEPT, "\nEND = 1\n\n"]),
    at=st.integers(1, 4),
)
def test_a_followed_change_is_both_sides_edits_and_nothing_else(
    steps: tuple[set[int], set[int]], own: dict[str, str], order: list[str], at: int
) -> None:
    edits, upstream = steps

    def edited(text: str, steps: set[int], argument: str) -> str:
        for step in steps:
            text = text.replace(f"step_{step}(x)", f"step_{step}({argument})")
        return text

    if not edits:
        return
    rest = "".join(order)
    moved, both = (edited(text, upstream, "x, 2") for text in (REAL, edited(REAL, edits - upstream, "x, 1")))
    there, wanted = ("".join([*order[:at], text, *order[at:]]) for text in (moved, both))
    made = port({A: PRE}, {A: edited(PRE, edits, "x, 1")}, own | {B: there}, {B: rest})
    if made.clean:
        assert texts(made) == {B: wanted}
        assert not edits & upstream
    else:
        assert made.files.keys() == {A}
        near = {step + n for step in upstream for n in (-1, 0, 1)}
        assert edits & near


# what is in doubt is named, never merged


def test_two_places_are_both_named() -> None:
    assert doubted({A: HEAD + OTHER, B: REAL, C: REAL}) == "real is new in 2 files"
    assert doubted({B: REAL, C: REAL.replace("step_7", "step_8")}) == "real is new in 2 files"
    less = function("real", "else")  # of the same name, it has hardly a line of it: it may have been split
    assert doubted({A: HEAD + OTHER, B: REAL, C: less}) == "real is new in 2 files"


def test_of_a_file_that_is_gone_too_the_places_are_named() -> None:
    (problem,) = port({A: PRE}, {A: changed(PRE)}, {B: REAL, C: REAL}).problems
    assert (problem.outcome, problem.candidates) == (Outcome.MOVED, (C, B))


def test_a_twin_that_was_there_before_gets_nothing() -> None:
    twin = {B: THERE + REAL}
    assert doubted({A: HEAD + OTHER} | twin, twin) == f"real was in {B}, too"
    assert doubted({A: HEAD + OTHER, B: THERE + REAL, C: REAL}, twin) == f"real was in {B}, too"
    # two became one: whose is it now
    assert doubted({A: HEAD + OTHER, B: REAL}, {C: REAL}) == f"real was in {C}, too"
    # of the same name, and it became alike only now
    assert doubted({A: HEAD + OTHER, B: REAL}, {B: function("real", "else")}) == f"real was in {B}, too"


def test_without_the_old_release_s_files_it_is_only_named() -> None:
    sides = ({A: PRE.encode()}, {A: changed(PRE).encode()}, {A: (HEAD + OTHER).encode()})
    (problem,) = attempt(*sides, lambda: {B: REAL.encode()}).problems
    assert (problem.outcome, problem.candidates) == (Outcome.MOVED, (B,))
    assert "not followed" not in problem.found


def test_a_function_that_was_split_in_two_gets_nothing() -> None:
    start, end = REAL.split("    step_6(x)\n")
    half = start + "    return rest(x)\n\n\n"
    assert doubted({A: HEAD + OTHER, B: half}) == "real has 64% of its lines there"
    start, end = REAL.split("    step_7(x)\n")
    half, rest = start + "    return rest(x)\n\n\n", "def rest(x):\n    step_7(x)\n" + end
    assert doubted({A: HEAD + OTHER, B: half.replace("    return rest", "    step_8(x)\n    return rest") + rest}) == (
        f"rest of {B} has lines of real, too"
    )


def test_one_that_was_renamed_in_its_file_and_copied_gets_nothing() -> None:
    slow = REAL.replace("real", "slow")
    for path, new in ((A, {A: HEAD + slow, B: REAL}), (B, {A: HEAD, B: REAL + slow})):
        assert doubted(new, pre=HEAD + REAL, post=HEAD + changed(REAL)) == f"slow of {path} has lines of real, too"


def test_a_method_is_not_followed_to_another_class() -> None:
    body = REAL.strip().replace("\n", "\n    ").replace("(x):", "(self, x):")
    pre = HEAD + f"class One:\n    a = 1\n\n    {body}\n"
    for there in (f"class Two:\n    {body}\n", f"class One:\n    {body}\n"):  # the class is where it was
        made = port({A: pre}, {A: changed(pre)}, {A: HEAD + "class One:\n    a = 1\n", B: there})
        assert not made.clean
        assert (list(made.files), dict(made.moved)) == ([A], {})
        assert {problem.candidates for problem in made.problems} <= {(), (B,)}


def test_a_nested_function_and_one_that_is_defined_twice_get_nothing() -> None:
    nested = "def outer():\n    " + REAL.strip().replace("\n", "\n    ") + "\n    return real\n"
    made = port({A: PRE}, {A: changed(PRE)}, {A: HEAD + OTHER, B: nested})
    assert (made.clean, dict(made.moved)) == (False, {})
    made = port({A: HEAD + nested}, {A: HEAD + changed(nested)}, {A: HEAD, B: REAL})
    assert (made.clean, dict(made.moved)) == (False, {})
    twice = "if LIMIT:\n    pass\n\n\n" + REAL.replace("step", "else") + REAL
    made = port({A: HEAD + twice}, {A: HEAD + changed(twice)}, {A: HEAD, B: "LIMIT = 4\n" + twice})
    assert (made.clean, dict(made.moved)) == (False, {})
    assert doubted({A: HEAD + OTHER, B: twice}) == "real is bound in another way there"
    assert "real is not there just once" in doubted({A: HEAD + OTHER, B: REAL + REAL})


def test_another_block_around_it_is_refused() -> None:
    within = "if LIMIT:\n" + "".join(f"    {line}\n" if line else "\n" for line in REAL.splitlines())
    why = doubted({A: HEAD + OTHER, B: "LIMIT = 4\n" + within})
    assert why.startswith(f"{B}: ")


def test_a_block_within_it_that_is_another_one_is_refused() -> None:
    body = "def real(x, a, b):\n" + "".join(f"    step_{n}(x)\n" for n in range(9))
    deeper = "".join(f"        act_{n}(x)\n" for n in range(7))
    pre = f"{body}    if a:\n{deeper}    return x\n"
    post = changed(pre, "act_3(x)", "act_3(x + 1)")
    there = pre.replace("if a:", "if a and b:")
    why = doubted({A: HEAD, B: there}, pre=HEAD + pre, post=HEAD + post)
    assert why == f"{B}: it was made for real > if a:; the change would land in real > if a and b:"


def test_the_same_lines_changed_there_are_a_problem() -> None:
    why = doubted({A: HEAD + OTHER, B: changed(REAL, "step_4(x)", "step_4(x + 2)")})
    assert why == f"{B}: the release changed the same lines of real, too"


def test_a_name_that_is_something_else_now_is_refused() -> None:
    assert doubted({A: HEAD + OTHER + "from vllm.c import real\n", B: REAL}).endswith("something else in this file now")
    assert doubted({A: HEAD + OTHER + "real = None\n", B: REAL}) == "real is something else in this file now"
    assert doubted({A: HEAD + OTHER, B: REAL + "real = print(real)\n"}) == "real is bound in another way there"
    assert doubted({A: HEAD + OTHER, B: "async " + REAL}) == "real is bound in another way there"


def test_a_file_that_python_cannot_read_is_refused() -> None:
    for new in ({A: HEAD + OTHER, B: REAL + "def\n"}, {A: changed(PRE, new="step_4(y)") + "def\n", B: REAL}):
        made = port({A: PRE}, {A: changed(PRE)}, new)
        assert (made.clean, dict(made.moved)) == (False, {})


def test_from_a_file_that_has_moved_itself_nothing_is_followed_to_a_third() -> None:
    made = port({A: PRE}, {A: changed(PRE)}, {B: HEAD + OTHER + "END = 1\n" * 7, C: REAL})
    assert [(problem.outcome, problem.candidates) for problem in made.problems] == [(Outcome.MOVED, (C,))]


def test_a_file_that_is_nested_too_deeply_is_refused() -> None:
    deep = "DEEP = " + "+".join(["1"] * 1200) + "\n\n\n"
    why = doubted({A: HEAD + OTHER, B: deep + REAL})
    assert why == f"{B} or the file itself is nested too deeply to be compared"


NEEDS = {
    "an import that the change adds": (("import os", "import os\nimport sys"), "sys.x"),
    "an import that only the old file has": (("import os", "import os"), "os.x"),
    "a constant that the change adds": (("LIMIT = 4", "LIMIT = 4\nFEW = 2"), "FEW"),
    "a constant that only the old file has": (("LIMIT = 4", "LIMIT = 4"), "LIMIT"),
    "a function that the change adds": (("LIMIT = 4", "LIMIT = 4\n\n\ndef few():\n    return 2"), "few()"),
    "a function that stays and was not asked for": (("LIMIT = 4", "LIMIT = 4"), "other(x)"),
    "a star import, perhaps": (("LIMIT = 4", "LIMIT = 4"), "unknown"),
}


@pytest.mark.parametrize("what", NEEDS)
def test_what_the_changed_body_needs_and_is_not_there_is_refused(what: str) -> None:
    (old, new), argument = NEEDS[what]
    post = changed(changed(PRE, old, new), new=f"step_4({argument})")
    name = argument.partition(".")[0].partition("(")[0]
    made = {A: HEAD + OTHER, B: "BASE = 1\n\n\n" + REAL}
    assert doubted(made, post=post) == f"the change in real needs {name}, which is another or none there"


def test_what_it_needs_and_is_another_there_is_refused() -> None:
    for argument, there in (("LIMIT", "LIMIT = 5\n"), ("os", "from vllm import os\n"), ("len(x)", "len = max\n")):
        post = changed(PRE, new=f"step_4({argument})")
        assert "which is another or none there" in doubted({A: HEAD + OTHER, B: there + "\n\n" + REAL}, post=post)
    post = changed(PRE, new="step_4(other(x))")  # the import is there, and what it takes is not
    assert "needs other" in doubted({A: HEAD, B: "from vllm.a import other\n" + REAL}, post=post)
    inside = changed(PRE, new="from .c import z\n    step_4(z)")
    assert doubted({A: HEAD + OTHER, B: REAL}, post=inside).startswith("the change in real needs from .c import z")


def test_what_it_needs_and_is_the_same_there_is_no_reason() -> None:
    same = {
        "os.x": "import os\nimport os.path\n",
        "LIMIT": "LIMIT = 4\n",
        "other(x)": "from vllm.a import other\n",
        "len(x)": "",
    }
    for argument, there in same.items():
        post = changed(PRE, new=f"step_4({argument})")
        made = port({A: PRE}, {A: post}, {A: HEAD + OTHER, B: there + REAL})
        assert texts(made) == {B: there + changed(REAL, new=f"step_4({argument})")}
    local = changed(PRE, new="y = x\n    step_4([z + y for z in x])")
    assert port({A: PRE}, {A: local}, {A: HEAD + OTHER, B: REAL}).clean


def test_a_constant_that_the_edition_changes_for_it_is_not_left_behind() -> None:
    """The body names it before and after; its value is changed in the old file, which nobody asks any more."""
    pre = PRE.replace("step_7(x)", "step_7(LIMIT)")
    post = changed(changed(pre), "LIMIT = 4", "LIMIT = 8")
    there = "LIMIT = 4\n\n\n" + REAL.replace("step_7(x)", "step_7(LIMIT)")
    assert "needs LIMIT" in doubted({A: HEAD + OTHER, B: there}, pre=pre, post=post)


def test_half_a_change_is_never_made() -> None:
    post = changed(changed(PRE), "do_4(x)", "do_4(x + 1)")
    here = HEAD + changed(OTHER, "do_4(x)", "do_4(x + 2)")
    assert doubted({A: here, B: REAL}, post=post).startswith(f"{B}: the rest of the change: ")
    assert doubted({B: REAL}, post=changed(changed(PRE), "LIMIT = 4", "LIMIT = 8")) == (
        f"{B}: the change has more than these definitions, and its file is gone"
    )
    assert doubted({A: HEAD + OTHER, B: changed(REAL)}, post=post) == f"{B}: {follow.PART}"
    both = changed(changed(PRE), "do_4(x)", "do_4(x + 1)")
    assert doubted({A: HEAD, B: REAL, C: OTHER}, post=both) == "the definitions went to several files"
    assert doubted({A: HEAD, B: REAL + changed(OTHER, "do_4(x)", "do_4(x + 1)")}, post=both) == f"{B}: {follow.PART}"


def test_a_part_of_the_edition_that_fails_there_takes_the_moved_one_with_it() -> None:
    made = port(
        {A: PRE, B: KEPT},
        {A: changed(PRE), B: changed(KEPT, "act_4(x)", "act_4(x + 1)")},
        {A: HEAD + OTHER, B: changed(KEPT, "act_4(x)", "act_4(x + 2)") + REAL},
    )
    assert [(problem.path, problem.outcome) for problem in made.problems] == [
        (A, Outcome.MOVED),
        (B, Outcome.CONFLICT),
    ]
    assert "the patch's own change of that file has problems" in made.problems[0].found
    assert dict(made.moved) == {}
    assert changed(REAL) not in (texts(made)[B] or "")


def test_one_file_of_the_edition_in_the_release_and_the_moved_one_not_is_half() -> None:
    own = changed(KEPT, "act_4(x)", "act_4(x + 1)")
    made = port({A: PRE, C: KEPT}, {A: changed(PRE), C: own}, {A: HEAD + OTHER, B: REAL, C: own})
    assert [(problem.path, problem.outcome) for problem in made.problems] == [(C, Outcome.CONFLICT)]
    assert not made.merged
    made = port({A: PRE, C: KEPT}, {A: changed(PRE), C: own}, {A: HEAD + OTHER, B: changed(REAL), C: KEPT})
    assert [(problem.path, problem.outcome) for problem in made.problems] == [(B, Outcome.CONFLICT)]


def test_a_last_line_without_its_end_is_refused() -> None:
    pre = PRE.rstrip("\n")
    assert doubted({A: HEAD + OTHER, B: REAL}, pre=pre, post=changed(pre)) == "the last line of real has no end"
    made = port({A: PRE}, {A: changed(PRE)}, {A: HEAD + OTHER, B: REAL.rstrip("\n")})
    assert "lacks its last line's end" in made.problems[0].found
