"""What targets get over their base: which one, with which pins, what fits, and every rule red once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from kiln import catalog, errors, plan
from kiln.catalog import installs as chosen
from kiln.catalog import lint_installs, records
from kiln.image import context, inputs, installs
from kiln.image.bake import Build

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiln.catalog import Catalog

ROOT = Path(__file__).resolve().parents[2]
RELEASES = "images/releases.yaml"
AT = f"{RELEASES}: releases.0.31.0.rocm.installs"
COMMIT = "620287969c9ce18cd2033ebbdfd13107800f7f3f"
FLYDSL = {
    "project": "flydsl",
    "file": "flydsl-0.2.0-cp312-cp312-manylinux_2_27_x86_64.whl",
    "sha256": "e861e2a3fe56f6d6889199f421c4d843ae80a26a073bc71867cbd3c433cf4d3a",
}
QUARK = {"project": "amd-quark", "file": "amd_quark-0.12.post1-py3-none-any.whl", "sha256": "0" * 64}
SOURCE = {
    "repository": "https://github.com/ROCm/aiter.git",
    "commit": COMMIT,
    "env": {"GPU_ARCHS": "gfx950", "AITER_USE_SYSTEM_TRITON": "1"},
}
AITER = {
    "package": "amd-aiter",
    "version": "0.1.16.post2",
    "reason": "a test",
    "arches": ["gfx950"],
    "source": SOURCE,
    "companions": [FLYDSL],
    "pins": {"aiter": "v0.1.16.post2", "flydsl": "==0.2.0"},
}
OF_WHEEL = {
    "package": "amd-quark",
    "version": "0.12.post1",
    "reason": "a test",
    "wheel": QUARK,
    "pins": {"amd_quark": "==0.12.post1"},
}
ONE = ("", "Value error, comes from a wheel or from a source: exactly one of the two")
MATCH = "String should match pattern"


@pytest.fixture(scope="module")
def real() -> Catalog:
    return catalog.load(ROOT)


@pytest.fixture
def with_installs(real: Catalog) -> Callable[..., Catalog]:
    """Return a function that gives the catalog with these installs on ROCm's 0.31.0."""

    def load(*installs: dict[str, Any]) -> Catalog:
        held = real.releases
        pins = held.releases["0.31.0"]
        made = tuple(records.Install.model_validate_json(json.dumps(each)) for each in installs)
        rocm = pins.rocm.model_copy(update={"installs": made})
        releases = held.releases | {"0.31.0": pins.model_copy(update={"rocm": rocm})}
        return replace(real, releases=held.model_copy(update={"releases": releases}))

    return load


def found(loaded: Catalog) -> list[str]:
    return [f"{finding.where}: {finding.problem}" for finding in lint_installs.findings(loaded)]


# which, and with which pins


def test_the_target_whose_patch_needs_a_newer_aiter_gets_it(real: Catalog) -> None:
    made = plan.make(real, variant="mxfp4", arch="gfx950", release="0.24.0")
    (install,) = made.installs
    assert (install.package, install.version) == ("amd-aiter", "0.1.16.post2")
    pins = dict(made.pins)
    wanted = {"aiter": "v0.1.16.post2", "flydsl": "==0.2.0", "aiter_use_system_triton": "true", "rocm": "7.2.3"}
    assert {name: pins[name] for name in wanted} == wanted
    assert "mxfp4-aiter-moe" in [use.id for use in made.series]
    assert made.as_data()["installs"] == [install.model_dump(mode="json", exclude_none=True)]


def test_without_it_the_target_is_refused(real: Catalog) -> None:
    pins = real.releases.releases["0.24.0"]
    bare = pins.model_copy(update={"rocm": pins.rocm.model_copy(update={"installs": ()})})
    releases = real.releases.model_copy(update={"releases": real.releases.releases | {"0.24.0": bare}})
    with pytest.raises(errors.BadInput) as caught:
        plan.make(replace(real, releases=releases), variant="mxfp4", arch="gfx950", release="0.24.0")
    assert "needs aiter >=0.1.16.post2, and the image of 0.24.0 has v0.1.13.post1" in caught.value.message


def test_no_other_target_of_the_release_gets_it(real: Catalog) -> None:
    for _, variant, arch, release in plan.possible(real):
        stack = chosen.stack_of(real.releases.releases[release], real.releases.arches[arch])
        expected = release == "0.24.0" and (variant, arch) == ("mxfp4", "gfx950")
        assert bool(chosen.needed(stack, variant=variant, arch=arch)) == expected


def test_an_install_for_every_target_is_for_every_target(with_installs: Callable[..., Catalog]) -> None:
    stack = with_installs(OF_WHEEL).releases.releases["0.31.0"].rocm
    assert chosen.needed(stack, variant="bf16", arch="gfx942") == stack.installs


# what fits


def rule(**changes: Any) -> records.Fit:
    values = {"pin": "aiter", "versions": "==0.1.16.*", "needs": {"flydsl": "==0.2.0"}, "because": "it says so"}
    return records.Fit.model_validate(values | changes)


@pytest.mark.parametrize(
    ("pins", "problem"),
    [
        ({"aiter": "v0.1.16.post2", "flydsl": "==0.2.0"}, ""),
        ({"aiter": "v0.1.16.post2", "flydsl": "0.2.0"}, ""),
        ({"aiter": "v0.1.19", "flydsl": "==0.2.4"}, ""),
        # nothing is known of it: recorded in the image, not compared
        ({"aiter": "v0.1.16.post2"}, ""),
        ({"flydsl": "==0.2.4"}, ""),
        (
            {"aiter": "v0.1.16", "flydsl": "==0.2.4"},
            "aiter v0.1.16 needs flydsl ==0.2.0, not ==0.2.4: it says so",
        ),
        (
            {"aiter": "v0.1.16", "flydsl": ">=0.2"},
            "aiter v0.1.16 needs flydsl ==0.2.0, not >=0.2: it says so",
        ),
        (
            {"aiter": "v0.1.16", "flydsl": "0e60e394"},
            "aiter v0.1.16 needs flydsl ==0.2.0, not 0e60e394: it says so",
        ),
    ],
    ids=str,
)
def test_what_a_pin_needs_of_the_others(pins: dict[str, str], problem: str) -> None:
    assert list(chosen.misfits([rule()], pins)) == ([problem] if problem else [])


def test_a_range_fits_a_need_that_is_the_same_range() -> None:
    asked = rule(versions="==0.1.13", needs={"flydsl": ">=0.1.4,<0.1.5"})
    assert not list(chosen.misfits([asked], {"aiter": "0.1.13", "flydsl": "<0.1.5,>=0.1.4"}))


def test_a_target_whose_pins_do_not_fit_is_refused(with_installs: Callable[..., Catalog]) -> None:
    loaded = with_installs({**AITER, "companions": [], "pins": {"aiter": "v0.1.16", "flydsl": "==0.2.4"}})
    with pytest.raises(errors.BadInput) as caught:
        plan.make(loaded, variant="mxfp8", arch="gfx950", release="0.31.0")
    said = "images/releases.yaml: aiter v0.1.16 needs flydsl ==0.2.0, not ==0.2.4: AITER's setup.py"
    assert said in caught.value.message
    plan.make(loaded, variant="mxfp8", arch="gfx942", release="0.31.0")


# every rule


def test_the_catalog_has_no_finding(real: Catalog) -> None:
    assert found(real) == []


def test_good_installs_have_none(with_installs: Callable[..., Catalog]) -> None:
    assert found(with_installs(AITER, OF_WHEEL)) == []


def changed(install: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return install | changes


def env(**changes: str) -> dict[str, Any]:
    held = {name: value for name, value in (SOURCE["env"] | changes).items() if value}  # type: ignore[operator]
    return changed(AITER, source=SOURCE | {"env": held})


@pytest.mark.parametrize(
    ("install", "problem"),
    [
        (changed(AITER, variants=["mxpf4"]), "{0}.0: unknown variant 'mxpf4'; did you mean 'mxfp4'?"),
        (changed(OF_WHEEL, arches=["sm90"]), "{0}.0: unknown arch 'sm90'; known: gfx942, gfx950"),
        (
            changed(OF_WHEEL, pins=OF_WHEEL["pins"] | {"flashinfer": "1"}),  # type: ignore[operator]
            "{0}.0: unknown pin 'flashinfer'; known: ",
        ),
        (
            changed(
                OF_WHEEL,
                companions=[{"project": "triton", "file": "triton-3.8.0-py3-none-any.whl", "sha256": "0" * 64}],
            ),
            "{0}.0: triton is protected: nothing may replace that of the base",
        ),
        (
            changed(OF_WHEEL, wheel=QUARK | {"project": "quark"}),
            "{0}.0: amd_quark-0.12.post1-py3-none-any.whl: is a wheel of amd-quark, not of quark",
        ),
        (
            changed(OF_WHEEL, version="0.13", pins={"amd_quark": "==0.13"}),
            "{0}.0: amd_quark-0.12.post1-py3-none-any.whl: is amd-quark 0.12.post1, and the install says",
        ),
        (
            changed(OF_WHEEL, wheel=QUARK | {"file": "amd_quark-0.12.post1-what.whl"}),
            "{0}.0: amd_quark-0.12.post1-what.whl: Invalid wheel filename",
        ),
        (
            changed(AITER, companions=[FLYDSL | {"file": FLYDSL["file"].replace("312", "311")}]),
            "{0}.0: flydsl-0.2.0-cp311-cp311-manylinux_2_27_x86_64.whl: does not run on Python 3.12",
        ),
        (
            changed(AITER, companions=[FLYDSL | {"file": FLYDSL["file"].replace("x86_64", "aarch64")}]),
            "{0}.0: flydsl-0.2.0-cp312-cp312-manylinux_2_27_aarch64.whl: does not run on Python 3.12 on linux/amd64",
        ),
        (changed(OF_WHEEL, pins={}), "{0}.0.pins: installs amd-quark 0.12.post1, and its pins say no amd_quark"),
        (
            changed(AITER, pins={"aiter": "v0.1.16", "flydsl": "==0.2.0"}),
            "{0}.0.pins: installs amd-aiter 0.1.16.post2, and its pins say aiter: v0.1.16",
        ),
        (env(GPU_ARCHS=""), "{0}.0.source.env.GPU_ARCHS: is missing, and the targets are for gfx950"),
        (env(GPU_ARCHS="native"), "{0}.0.source.env.GPU_ARCHS: is native, and the targets are for gfx950"),
        (
            {name: value for name, value in AITER.items() if name != "arches"},
            "{0}.0.source.env.GPU_ARCHS: is gfx950, and the targets are for gfx942;gfx950",
        ),
        (
            env(AITER_USE_SYSTEM_TRITON="0"),
            "{0}.0.source.env.AITER_USE_SYSTEM_TRITON: is not 1, so the build of AITER would replace the Triton",
        ),
        (
            changed(AITER, companions=[], pins={"aiter": "v0.1.16.post2", "flydsl": "==0.2.4"}),
            "{0}: amd-aiter: aiter v0.1.16.post2 needs flydsl ==0.2.0, not ==0.2.4: AITER's setup.py",
        ),
    ],
)
def test_a_wrong_install_is_one_finding(
    with_installs: Callable[..., Catalog], install: dict[str, Any], problem: str
) -> None:
    (said,) = found(with_installs(install))
    assert said.startswith(problem.format(AT))


def test_one_target_gets_a_package_once_and_builds_one(with_installs: Callable[..., Catalog]) -> None:
    other = changed(AITER, variants=["mxfp4"])
    twice = "a target gets {} twice: with amd-aiter 0.1.16.post2, amd-aiter 0.1.16.post2"
    both = "a target has both amd-aiter and amd-aiter to build from source; a build takes one"
    assert found(with_installs(AITER, other)) == [
        f"{AT}: {problem}" for problem in (twice.format("amd-aiter"), twice.format("flydsl"), both)
    ]


def test_installs_that_no_target_shares_are_fine(with_installs: Callable[..., Catalog]) -> None:
    other = changed(AITER, arches=["gfx942"], source=SOURCE | {"env": SOURCE["env"] | {"GPU_ARCHS": "gfx942"}})  # type: ignore[operator]
    assert found(with_installs(AITER, other)) == []


def test_a_stack_whose_own_pins_do_not_fit_is_a_finding(catalog_copy: Path, edit: Callable[..., None]) -> None:
    edit(RELEASES, "\n      flydsl: ==0.2.4", "\n      flydsl: ==0.2.5")
    (said,) = found(catalog.load(catalog_copy))
    where = f"{RELEASES}: releases.0.27.0.rocm"
    assert said == f"{where}: aiter v0.1.19 needs flydsl ==0.2.4, not ==0.2.5: AITER's setup.py"


def test_a_rule_over_a_pin_that_there_is_not_is_a_finding(catalog_copy: Path, edit: Callable[..., None]) -> None:
    edit(RELEASES, "needs: {python: ", "needs: {pyhton: ")
    assert found(catalog.load(catalog_copy)) == [
        f"{RELEASES}: compatibility: unknown pin 'pyhton'; did you mean 'python'?"
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"wheel": None}, ONE),
        ({"source": SOURCE}, ONE),
        ({"wheel": None, "source": SOURCE | {"commit": COMMIT[:12]}}, ("source.commit", MATCH)),
        ({"wheel": None, "source": SOURCE | {"commit": "main"}}, ("source.commit", MATCH)),
        (
            {"wheel": None, "source": SOURCE | {"repository": "https://user:word@github.com/ROCm/aiter.git"}},
            ("source.repository", MATCH),
        ),
        (
            {"wheel": None, "source": SOURCE | {"repository": "https://github.com/ROCm/../x"}},
            ("source.repository", MATCH),
        ),
        ({"wheel": None, "source": SOURCE | {"env": {"A B": "1"}}}, ("source.env.A B.[key]", MATCH)),
        ({"wheel": None, "source": SOURCE | {"env": {"A": "1\n2"}}}, ("source.env.A", MATCH)),
        ({"wheel": None, "source": SOURCE | {"env": {"A": 1}}}, ("source.env.A", "Input should be a valid string")),
        ({"versoin": "1"}, ("versoin", "Extra inputs are not permitted")),
        ({"wheel": QUARK | {"sha256": "00"}}, ("wheel.sha256", MATCH)),
    ],
    ids=str,
)
def test_an_install_is_read_strictly(change: dict[str, Any], problem: tuple[str, str]) -> None:
    install = {name: value for name, value in (OF_WHEEL | change).items() if value is not None}
    with pytest.raises(ValidationError) as caught:
        records.Install.model_validate_json(json.dumps(install), strict=True)
    (said,) = caught.value.errors()
    assert (".".join(map(str, said["loc"])), said["msg"].partition(" '^")[0]) == problem


# what a build is given


def test_a_target_without_installs_gets_no_stage_and_no_context(real: Catalog) -> None:
    made = plan.make(real, variant="mxfp8", arch="gfx942")
    assert installs.arguments(made) == {}
    assert installs.contexts(real, made) == {}


def test_a_build_from_source_has_its_stage_and_the_one_commit(
    real: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan.make(real, variant="mxfp4", arch="gfx950", release="0.24.0")
    monkeypatch.setattr(context, "stage_uv", lambda _: tmp_path)
    assert installs.arguments(made) == {"BELOW": "installed", "WHEELHOUSE": "built"}
    assert installs.contexts(real, made) == {
        "tools": str(tmp_path),
        "source": f"https://github.com/ROCm/aiter.git#{COMMIT}",
    }
    assert installs.listed(made) == {
        "packages": [
            {"name": "flydsl", "version": "0.2.0", "sha256": FLYDSL["sha256"]},
            {"name": "amd-aiter", "version": "0.1.16.post2", "sha256": ""},
        ],
        "source": {
            "name": "amd-aiter",
            "version": "0.1.16.post2",
            "env": {"GPU_ARCHS": "gfx950", "AITER_USE_SYSTEM_TRITON": "1", "PREBUILD_KERNELS": "1"},
            "requires": [
                {
                    "name": "setuptools-scm",
                    "version": "8.3.1",
                    "sha256": "332ca0d43791b818b841213e76b1971b7711a960761c5bea5fc5cdb5196fbce3",
                }
            ],
        },
    }


def test_a_source_comes_from_the_mirror_by_the_same_commit(
    catalog_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (catalog_copy / "kiln.yaml").write_text("mirrors: {https://github.com/ROCm: https://git.example.com/rocm}\n")
    loaded = catalog.load(catalog_copy)
    made = plan.make(loaded, variant="mxfp4", arch="gfx950", release="0.24.0")
    monkeypatch.setattr(context, "stage_uv", lambda _: tmp_path)
    mirrored = installs.contexts(loaded, made)
    assert mirrored["source"] == f"https://git.example.com/rocm/aiter.git#{COMMIT}"
    (tmp_path / "Dockerfile").touch()
    (tmp_path / "empty").mkdir()

    def hashed(contexts: dict[str, str]) -> str:
        at = tmp_path / "Dockerfile"
        return inputs.sha256(Build(name="x", dockerfile=at, context=tmp_path / "empty", contexts=contexts))

    source = f"https://github.com/ROCm/aiter.git#{COMMIT}"
    assert hashed(mirrored) == hashed(mirrored | {"source": source})
    assert hashed(mirrored) != hashed(mirrored | {"source": source.replace("6202", "6203")})
    with pytest.raises(errors.BadInput, match="can change unseen"):
        hashed(mirrored | {"source": "https://github.com/ROCm/aiter.git#main"})


def test_the_staged_files_are_scripts_list_and_wheels(
    with_installs: Callable[..., Catalog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = with_installs(OF_WHEEL)
    made = plan.make(loaded, variant="bf16", arch="gfx942")
    wheel = tmp_path / "held" / str(QUARK["file"])
    wheel.parent.mkdir()
    wheel.write_bytes(b"a wheel")
    monkeypatch.setattr(context, "whole_wheel", lambda _, pin: wheel.with_name(pin.file))
    folder = tmp_path / "context"
    folder.mkdir()
    installs.stage(folder, loaded, made)
    assert (folder / "wheels" / wheel.name).read_bytes() == b"a wheel"
    assert json.loads((folder / "install/installs.json").read_text()) == {
        "packages": [{"name": "amd-quark", "version": "0.12.post1", "sha256": "0" * 64}]
    }
    assert installs.arguments(made) == {"BELOW": "installed"}
    assert {path.name for path in (folder / "install").glob("*.py")} == {
        path.name for path in (ROOT / "images/install").glob("*.py")
    }


# kiln.yaml


def test_settings_of_a_person(catalog_copy: Path) -> None:
    (catalog_copy / "certs").mkdir()
    (catalog_copy / "certs/ca.pem").write_text("PEM")
    settings = "ca: certs/ca.pem\npublish: registry.example.com:5000/team/models\n"
    (catalog_copy / "kiln.yaml").write_text(settings)
    config = catalog.load(catalog_copy).config
    assert config == records.Config(
        ca=(catalog_copy / "certs/ca.pem").resolve(), publish="registry.example.com:5000/team/models"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ca: no.pem", "kiln.yaml: ca: no.pem: no such file"),
        ("publish: registry.example.com", "kiln.yaml: publish: String should match pattern"),
        ("publish: registry.example.com/team:1", "kiln.yaml: publish: String should match pattern"),
        ("publish: https://registry.example.com/team", "kiln.yaml: publish: String should match pattern"),
        ("publsih: a/b", "kiln.yaml: publsih: unknown key 'publsih'; did you mean 'publish'?"),
    ],
)
def test_settings_are_read_strictly(catalog_copy: Path, text: str, problem: str) -> None:
    (catalog_copy / "kiln.yaml").write_text(text)
    with pytest.raises(errors.BadInput) as caught:
        catalog.load(catalog_copy)
    assert caught.value.message.startswith(problem)
