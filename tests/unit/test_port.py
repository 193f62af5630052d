"""Editions ported in memory: what merges is right, and what git would put in a wrong place is refused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln import errors
from kiln.patching.outcomes import Outcome
from kiln.port import guard, merge
from kiln.port.attempt import Attempt, Between, attempt

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PATH = "vllm/a.py"
STEPS = "".join(f"    step_{n}(x)\n" for n in range(9))
DEEPER = STEPS.replace("    ", "        ")
REAL, TWIN = f"def real(x):\n{STEPS}\n\n", f"def twin(x):\n{STEPS}\n\n"
HEAD = '"""A module."""\n\nimport os\n\n\n'


def changed(text: str) -> str:
    """Return the text with the last of its fifth steps changed."""
    before, _, after = text.rpartition("step_4(x)")
    return f"{before}step_4(x + 1){after}"


def port(  # noqa: PLR0913 - one argument a side
    pre: str | None,
    post: str | None,
    theirs: str | None,
    *,
    path: str = PATH,
    new: Mapping[str, str] | None = None,
    old: Mapping[str, str] | None = None,
) -> Attempt:
    """Port one file; `new` are the other files of the new release, `old` those of the edition's."""

    def data(text: str | None) -> bytes | None:
        return None if text is None else text.encode()

    def there() -> dict[str, bytes]:
        own = {} if theirs is None else {path: theirs.encode()}
        return own | {name: text.encode() for name, text in (new or {}).items()}

    def before() -> dict[str, bytes]:
        own = {} if pre is None else {path: pre.encode()}
        return own | {name: text.encode() for name, text in (old or {}).items()}

    between = Between(edition="0.1.0", release="0.2.0", before=None if old is None else before)
    return attempt({path: data(pre)}, {path: data(post)}, {path: data(theirs)}, there, between=between)


def text_of(made: Attempt, path: str = PATH) -> str:
    data = made.files[path]
    assert data is not None
    return data.decode()


def refused_though_git_merges(pre: str, post: str, theirs: str) -> str:
    """Return what the one problem says, after seeing that git alone would have merged."""
    sides = (pre.encode(), post.encode(), theirs.encode())
    assert merge.three_way(*sides, merge.Labels()).conflicts == 0
    made = port(pre, post, theirs)
    assert not made.clean
    assert not made.merged
    (problem,) = made.problems
    assert problem.hunk == 1
    return f"{problem.outcome.value}: {problem.expected}; {problem.found}"


# what merges


def test_a_change_is_carried_over_a_change_elsewhere() -> None:
    pre = HEAD + TWIN + REAL
    made = port(pre, changed(pre), pre.replace("import os", "import sys\nimport os"))
    assert made.clean
    assert not made.merged
    assert text_of(made) == changed(pre).replace("import os", "import sys\nimport os")


def test_an_untouched_file_becomes_the_edition_s_own() -> None:
    def find() -> dict[str, bytes]:
        raise AssertionError("all files were asked for, and none is missing")

    pre, post = REAL.encode(), changed(REAL).encode()
    made = attempt({PATH: pre}, {PATH: post}, {PATH: pre}, find)
    assert (made.clean, made.merged, made.files) == (True, False, {PATH: post})


def test_a_file_with_crlf_keeps_it() -> None:
    pre = (HEAD + REAL).replace("\n", "\r\n")
    theirs = pre.replace("import os", "import sys\r\nimport os")
    made = port(pre, changed(pre), theirs)
    assert made.clean
    assert text_of(made) == changed(theirs)


def test_other_line_ends_are_a_conflict_that_says_so() -> None:
    pre = HEAD + REAL
    made = port(pre, changed(pre), pre.replace("\n", "\r\n"))
    assert [problem.outcome for problem in made.problems] == [Outcome.CONFLICT]
    assert "EOL_MISMATCH" in made.problems[0].hint


def test_a_new_function_lands_wherever_it_is_the_same() -> None:
    pre = HEAD + REAL
    post = f"{pre}def added(x):\n    return x\n"
    theirs = pre.replace("def real", "def first(x):\n    return x\n\n\ndef real")
    made = port(pre, post, theirs)
    assert made.clean
    assert text_of(made) == theirs + "def added(x):\n    return x\n"


LINES = [f"line {n}\n" for n in range(60)]


@settings(max_examples=40, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(1, 19), st.booleans(), st.sampled_from(["replace", "delete", "insert"])),
        min_size=1,
        unique_by=lambda edit: edit[0],
    )
)
def test_disjoint_edits_of_both_sides_are_all_in_the_result(edits: list[tuple[int, bool, str]]) -> None:
    """Each edit is three lines from the next one, so that git has no reason for a conflict."""
    sides = [list(LINES) for _ in range(3)]  # ours, theirs, both
    for place, ours, kind in edits:
        at = place * 3
        done = {"replace": f"new {at}\n", "delete": "", "insert": f"{LINES[at]}more {at}\n"}[kind]
        for side in (sides[0] if ours else sides[1], sides[2]):
            side[at] = done
    pre, (post, theirs, both) = "".join(LINES), map("".join, sides)
    if post == pre:
        return
    made = port(pre, post, theirs, path="vllm/a.txt")
    assert made.clean
    assert text_of(made, "vllm/a.txt") == both
    assert not made.merged


NAMES = "abcdef"
OPS = st.tuples(
    st.sampled_from(["delete", "rename", "header", "swap", "copy", "body"]), st.integers(0, 5), st.integers(0, 8)
)


@settings(max_examples=60, deadline=None)
@given(ops=st.lists(OPS, max_size=4), target=st.integers(0, 5))
def test_whatever_upstream_does_to_twins_a_change_lands_in_its_own_function_or_nowhere(
    ops: list[tuple[str, int, int]], target: int
) -> None:
    """All functions have the same body; names tell them apart, and git looks at none."""
    pre = "".join(f"def {name}(x):\n{STEPS}\n\n" for name in NAMES)
    post = "".join(f"def {name}(x):\n{changed(STEPS) if name == NAMES[target] else STEPS}\n\n" for name in NAMES)
    theirs = _evolved(ops)
    made = port(pre, post, "".join(f"def {name}{args}:\n{body}\n\n" for name, args, body in theirs))
    if made.clean:
        wanted = [
            (n, a, body.replace("step_4(x)", "step_4(x + 1)") if n == NAMES[target] else body) for n, a, body in theirs
        ]
        assert text_of(made) == "".join(f"def {name}{args}:\n{body}\n\n" for name, args, body in wanted)


def _evolved(ops: list[tuple[str, int, int]]) -> list[tuple[str, str, str]]:
    """Return (name, arguments, body) of each function after what upstream did."""
    found = [(name, "(x)", STEPS) for name in NAMES]
    for kind, n, step in ops:
        name, args, body = found[at] if (at := n % max(1, len(found))) < len(found) else ("z", "(x)", STEPS)
        done = {
            "delete": [],
            "rename": [(f"{name}_{step}", args, body)],
            "header": [(name, f"(x, y{step})", body)],
            "swap": [],
            "copy": [(name, args, body), (f"{name}_copy", args, body)],
            "body": [(name, args, body.replace(f"    step_{step}(x)\n", f"    other_{step}(x)\n"))],
        }[kind]
        found[at : at + 1] = done
        if kind == "swap":
            found.append((name, args, body))
    return found


# what git would merge into a wrong place


def test_a_twin_function_gets_nothing_that_was_made_for_the_deleted_one() -> None:
    said = refused_though_git_merges(
        HEAD + TWIN + REAL, changed(HEAD + TWIN + REAL), HEAD + TWIN.replace("(x):", "(x, y):", 1)
    )
    assert said.startswith("CONFLICT: it was made for real;")
    assert "real is no longer in this file; the change would land in twin" in said


def test_a_method_of_the_same_name_in_another_class_gets_nothing() -> None:
    one, other = (f"class {name}:\n    def apply(self, x):\n{DEEPER}\n\n" for name in ("One", "Other"))
    said = refused_though_git_merges(one + other, changed(one + other), one.replace("One:", "One(Base):"))
    assert "it was made for Other.apply" in said
    assert "the change would land in One.apply" in said


def test_a_twin_branch_of_the_same_function_gets_nothing() -> None:
    pre = f"def f(x, a, b):\n    if a:\n{DEEPER}    if b:\n{DEEPER}    return x\n"
    said = refused_though_git_merges(pre, changed(pre), f"def f(x, a, b):\n    if a and b:\n{DEEPER}    return x\n")
    assert "it was made for f > if b:; the change would land in f > if a and b:" in said


def test_equal_lines_of_one_block_are_told_apart_or_refused() -> None:
    pre = f"def f(x, a, b):\n    x = a\n{STEPS}    x = b\n{STEPS}    return x\n"
    said = refused_though_git_merges(pre, changed(pre), f"def f(x, a, b):\n    x = a + b\n{STEPS}    return x\n")
    assert said == "AMBIGUOUS: lines that stand there twice, the change in number 2; once, and it would be in number 1"


def test_a_name_that_is_defined_another_number_of_times_is_refused() -> None:
    said = refused_though_git_merges(REAL + REAL, changed(REAL + REAL), REAL.replace("(x):", "(x, y):", 1))
    assert "it was made for real (2 of 2); the change would land in real" in said
    branches = f"if A:\n    def f(x):\n{DEEPER}else:\n    def f(x):\n{DEEPER}"
    third = f"if B:\n    def f(x):\n{DEEPER}"
    said = refused_though_git_merges(branches, changed(branches), branches + third.replace("step", "other"))
    assert said == "AMBIGUOUS: f, defined twice; it is defined 3 times"


def test_a_definition_that_the_release_has_added_itself_is_not_added_again() -> None:
    own = "def added(x):\n    return x\n\n\n"
    pre = HEAD + REAL + TWIN
    said = refused_though_git_merges(pre, HEAD + own + REAL + TWIN, pre + own.replace("return x", "return -x"))
    assert "added, defined once; it is defined twice" in said or "1 of 2" in said


def test_a_renamed_function_is_refused_with_its_new_name() -> None:
    pre = HEAD + REAL
    said = refused_though_git_merges(pre, changed(pre), pre.replace("real", "other"))
    assert "the change would land in other" in said


def test_a_result_that_does_not_compile_is_refused() -> None:
    pre = HEAD + "async " + REAL
    made = port(pre, pre.replace("step_4(x)", "await step_4(x)"), pre.replace("async ", ""))
    (problem,) = made.problems
    assert problem.outcome is Outcome.CONFLICT
    assert "'await' outside async function" in problem.found


def test_json_that_no_longer_is_json_is_refused() -> None:
    pre = '{\n  "a": [\n' + "".join(f"    {n},\n" for n in range(9)) + "    9\n  ]\n}\n"
    post = pre.replace("    9\n", "    9,\n    10\n")
    good = port(pre, post, pre.replace("    1,\n", "    1.5,\n"), path="vllm/a.json")
    assert good.clean
    broken = port(pre, post, pre.replace("    1,\n", "    1\n"), path="vllm/a.json")
    assert [problem.expected for problem in broken.problems] == ["JSON"]


# functions and files that are gone


def test_a_deleted_function_is_a_conflict() -> None:
    pre = HEAD + TWIN + REAL
    made = port(pre, changed(pre), HEAD + TWIN)
    (problem,) = made.problems
    assert (problem.outcome, problem.hunk, problem.candidates) == (Outcome.CONFLICT, 1, ())
    assert "real is no longer in this file" in problem.found
    assert b"<<<<<<< 0.2.0\n" in (made.files[PATH] or b"")
    assert b">>>>>>> 0.1.0, with the patch\n" in (made.files[PATH] or b"")


def test_a_function_that_went_to_another_file_is_named_not_merged() -> None:
    pre = HEAD + TWIN + REAL
    made = port(pre, changed(pre), HEAD + TWIN, new={"vllm/b.py": HEAD + REAL, "vllm/c.py": "def real(y):\n    pass\n"})
    (problem,) = made.problems
    assert (problem.outcome, problem.candidates) == (Outcome.MOVED, ("vllm/b.py",))
    assert made.moved == {}
    assert "vllm/b.py" not in made.files


def test_a_moved_file_is_followed() -> None:
    pre = HEAD + TWIN + REAL
    there = pre.replace("import os", "import sys")
    made = port(
        pre, changed(pre), None, new={"vllm/sub/a.py": there, "vllm/z.py": "z = 1\n"}, old={"vllm/z.py": "z = 1\n"}
    )
    assert made.clean
    assert made.moved == {PATH: "vllm/sub/a.py"}
    assert dict(made.files) == {"vllm/sub/a.py": changed(there).encode()}


def test_two_files_that_a_moved_one_may_be_are_both_named() -> None:
    pre = HEAD + TWIN + REAL
    new = {"vllm/amd/a.py": pre, "vllm/nvidia/a.py": pre.replace("import os", "import sys")}
    made = port(pre, changed(pre), None, new=new, old={})
    (problem,) = made.problems
    assert (problem.outcome, problem.candidates) == (Outcome.MOVED, ("vllm/amd/a.py", "vllm/nvidia/a.py"))
    assert made.moved == {}
    assert dict(made.files) == {PATH: None}


def test_a_file_that_was_always_there_is_not_what_a_deleted_one_became() -> None:
    pre = HEAD + TWIN + REAL
    twin = {"vllm/nvidia/a.py": pre}
    made = port(pre, changed(pre), None, new=twin, old=twin)
    assert [problem.outcome for problem in made.problems] == [Outcome.CONFLICT]
    assert made.moved == {}


def test_without_the_old_release_s_files_a_moved_file_is_only_named() -> None:
    pre = HEAD + TWIN + REAL
    made = port(pre, changed(pre), None, new={"vllm/sub/a.py": pre})
    (problem,) = made.problems
    assert (problem.outcome, problem.candidates) == (Outcome.MOVED, ("vllm/sub/a.py",))


def test_a_file_that_was_copied_is_refused() -> None:
    pre = HEAD + TWIN + REAL
    for copy in ({"vllm/amd/a.py": pre}, {"vllm/amd/b.py": HEAD + REAL}):
        (problem,) = port(pre, changed(pre), pre, new=copy, old={}).problems
        assert (problem.outcome, problem.candidates) == (Outcome.AMBIGUOUS, (PATH, *copy))
        assert port(pre, changed(pre), pre, new=copy, old=copy).clean  # it was there before


# what the release has already


def test_a_change_that_the_release_has_is_merged() -> None:
    pre = HEAD + TWIN + REAL
    for theirs in (changed(pre), changed(pre).replace("import os", "import sys")):
        made = port(pre, changed(pre), theirs)
        assert made.merged
        assert made.clean
        assert text_of(made) == theirs


def test_a_change_that_the_release_has_in_another_function_is_not_merged() -> None:
    pre = HEAD + TWIN + REAL
    said = refused_though_git_merges(pre, changed(pre), changed(pre).replace("real", "other"))
    assert "the release has it, but elsewhere" in said or "no longer in this file" in said


def test_half_of_a_change_is_not_the_change() -> None:
    pre = HEAD + TWIN + REAL
    half = pre.replace("import os", "import sys")
    (problem,) = port(pre, changed(half), half).problems
    assert problem.outcome is Outcome.CONFLICT
    assert problem.found == "hunk 1: in part or whole in the release already, the rest is not"
    files = {PATH: pre.encode(), "vllm/b.py": pre.encode()}
    post = {path: changed(pre).encode() for path in files}
    made = attempt(files, post, files | {PATH: post[PATH]}, dict)
    assert [(problem.path, problem.outcome) for problem in made.problems] == [(PATH, Outcome.CONFLICT)]
    assert not made.merged
    assert attempt(files, post, post, dict).merged


def test_the_same_lines_changed_in_other_words_are_a_conflict() -> None:
    pre = HEAD + REAL
    made = port(pre, changed(pre), pre.replace("step_4(x)", "step_4(x + 2)"))
    (problem,) = made.problems
    assert (problem.outcome, problem.hunk) == (Outcome.CONFLICT, 1)
    assert (problem.expected, problem.found) == ("line 11:     step_4(x)", "line 11:     step_4(x + 2)")
    assert problem.lines == (10, 11)


# created and deleted files


def test_a_created_file_is_created_once() -> None:
    assert text_of(port(None, REAL, None)) == REAL
    assert port(None, REAL, REAL).merged
    (problem,) = port(None, REAL, TWIN).problems
    assert (problem.outcome, problem.expected) == (Outcome.CONFLICT, "absent")


def test_a_deleted_file_is_deleted_only_as_it_was() -> None:
    gone = port(REAL, None, REAL)
    assert (gone.clean, gone.merged, dict(gone.files)) == (True, False, {PATH: None})
    assert port(REAL, None, None).merged
    (problem,) = port(REAL, None, TWIN).problems
    assert problem.outcome is Outcome.CONFLICT


# git itself


def test_a_file_that_git_takes_for_binary_is_a_conflict() -> None:
    (problem,) = port("a\0\n", "b\0\n", "a\0\nc\n", path="vllm/a.txt").problems
    assert problem.outcome is Outcome.CONFLICT
    assert "binary" in problem.found.lower()


def test_the_machine_s_git_settings_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    merge.three_way.cache_clear()
    (tmp_path / "config").write_text("[merge]\n\tconflictStyle = merge\n[core]\n\tautocrlf = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "not a number")
    pre = HEAD + REAL
    made = port(pre, changed(pre), pre.replace("step_4(x)", "step_4(x + 2)"))
    assert "||||||| 0.1.0, before the patch\n    step_4(x)\n=======\n" in text_of(made)


def test_without_git_the_message_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    merge.three_way.cache_clear()
    (tmp_path / "env").symlink_to("/usr/bin/env")
    monkeypatch.setenv("PATH", str(tmp_path))
    pre = HEAD + REAL
    with pytest.raises(errors.Missing, match="git") as caught:
        port(pre, changed(pre), pre.replace("import os", "import sys"))
    assert "apt-get install git" in caught.value.hint
    assert os.environ["PATH"] == str(tmp_path)


def test_a_merge_that_changes_other_lines_than_the_edition_is_refused() -> None:
    """Git does no such thing; would it, the lines say so."""
    pre = HEAD + TWIN + REAL
    theirs = pre.replace("import os", "import sys")
    for merged in (changed(theirs) + "# more\n", changed(theirs).replace("step_8", "step_9"), changed(pre)):
        sides = guard.Sides(
            path=PATH, pre=pre.encode(), post=changed(pre).encode(), theirs=theirs.encode(), merged=merged.encode()
        )
        assert [problem.found for problem in guard.problems(sides)] == ["git's merge changes other lines"]
