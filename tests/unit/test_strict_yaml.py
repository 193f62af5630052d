from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kiln import errors
from kiln.catalog import strict_yaml

if TYPE_CHECKING:
    from pathlib import Path


def read(folder: Path, text: bytes | str) -> Any:
    path = folder / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return strict_yaml.read(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-10-05", "2026-10-05"),
        ("2026-10-05 12:00:00", "2026-10-05 12:00:00"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("on", "on"),
        ("True", "True"),
        ("true", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("12:30", "12:30"),
        ("1:30:00.5", "1:30:00.5"),
        ("010", 10),
        ("-7", -7),
        ("0x1F", 31),
        ("0b11", 3),
        ("1_000", 1000),
        ("1.50", 1.5),
        ("-.5e-1", -0.05),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("0.31.0", "0.31.0"),
        ("4ba787ec9", "4ba787ec9"),
        ('"5"', "5"),
        ("é", "é"),
        ("[1, [2, {a: b}]]", [1, [2, {"a": "b"}]]),
    ],
)
def test_values(tmp_path: Path, text: str, expected: object) -> None:
    found = read(tmp_path, f"key: {text}\n")
    assert found == {"key": expected}
    assert type(found["key"]) is type(expected)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", ":3:1: key 'a' is given twice"),
        ("a: {b: 1, c: 2, b: 3}\n", ":1:17: key 'b' is given twice"),
        ('a: 1\n"a": 2\n', ":2:1: key 'a' is given twice"),
        ("5: a\n", ":1:1: key 5 is not text"),
        ("true: a\n", ":1:1: key True is not text"),
        ("a:\n\tb: 1\n", ":2:1: found character that cannot start any token"),
        ("a: 1\n\tb: 2\n", ":2:1: found a tab character that violates indentation"),
        (b"a: 1\nb: \xff\n", ":2: not UTF-8: byte 0xff"),
        ("a: 1".encode("utf-16"), ":1: not UTF-8: byte 0xff"),
        ("a: 1\nb: \x07\n", ":2: control characters are not allowed"),
        ("a: 1\n---\nb: 2\n", ":2:1: but found another document"),
        ("a: [1\n", ":2:1: did not find expected ',' or ']'"),
        ("a: &a [*a]\n", ":1:4: found unconstructable recursive node"),
        ("&a [*a]\n", ":1:1: found unconstructable recursive node"),
        ("a: *b\n", ":1:4: found undefined alias"),
        ("a: !!int x\n", ": invalid literal for int() with base 0: 'x'"),
    ],
)
def test_what_is_refused_names_file_and_line(tmp_path: Path, text: bytes | str, problem: str) -> None:
    with pytest.raises(errors.BadInput) as caught:
        read(tmp_path, text)
    assert caught.value.message == f"{tmp_path / 'a.yaml'}{problem}"


@pytest.mark.parametrize("tag", ["!!timestamp 2026-10-05", "!!binary aGk=", "!!set {x}", "!!python/name:os.system ''"])
def test_tags_beyond_json_are_refused(tmp_path: Path, tag: str) -> None:
    with pytest.raises(errors.BadInput, match=r":1:6: could not determine a constructor for the tag"):
        read(tmp_path, f"key: {tag}\n")


def test_a_merge_key_is_no_magic(tmp_path: Path) -> None:
    assert read(tmp_path, "<<: {a: 1}\nb: 2\n") == {"<<": {"a": 1}, "b": 2}


def test_the_size_is_bounded(tmp_path: Path) -> None:
    padding = "# " + "x" * (2_000_000 - len("a: 1\n") - 3) + "\n"
    assert read(tmp_path, "a: 1\n" + padding) == {"a": 1}
    with pytest.raises(errors.BadInput, match=r"larger than 2000000 bytes$"):
        read(tmp_path, "a: 11\n" + padding)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(errors.BadInput) as caught:
        strict_yaml.read(tmp_path / "gone.yaml")
    assert caught.value.message == f"{tmp_path / 'gone.yaml'}: cannot be read: No such file or directory"
