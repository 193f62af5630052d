"""The matrix, orders that contradict themselves, and several jobs at a time with a row for each."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from kiln import catalog, errors, process
from kiln.image import destination, many, orders, receipt
from kiln.image.many import Chosen
from kiln.image.receipt import Receipt
from kiln.report import Among, Reporter
from kiln.tasks import choice, show

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiln.plan import Plan

REAL = catalog.load(Path(__file__).resolve().parents[2])
MADE = Receipt(
    target="t",
    kind="twin",
    image="kiln/t:latest",
    digest=f"sha256:{'1' * 64}",
    base=f"sha256:{'2' * 64}",
    series=("one",),
    ledger_sha256="3" * 64,
    inputs_sha256="4" * 64,
    compressed_bytes=1,
    layers=1,
    catalog_commit="none",
    catalog_dirty=True,
    seconds={},
)
CHOSEN = choice.matrix(REAL, choice.Asked(arch="gfx942"))
NAMES = ["minimax-m3-bf16-gfx942-0.31.0", "minimax-m3-mxfp8-gfx942-0.31.0"]


def test_the_matrix_is_every_possible_target_of_its_lists() -> None:
    wanted = REAL.releases.matrix
    found = choice.matrix(REAL, choice.Asked())
    targets = [each.planned().target for each in found]
    assert {target.release for target in targets} == set(wanted.releases)
    assert {target.variant for target in targets} == set(wanted.variants)
    assert {target.arch for target in targets} == set(wanted.arches)
    assert [each.target for each in found] == [target.slug for target in targets]


def test_a_matrix_without_lists_is_everything() -> None:
    releases = REAL.releases.model_copy(update={"matrix": type(REAL.releases.matrix)()})
    whole = choice.matrix(replace(REAL, releases=releases), choice.Asked())
    assert len(whole) == len(choice.targets(REAL, choice.Asked()))
    refused = [each for each in whole if each.error]
    assert refused
    with pytest.raises(errors.BadInput, match="has no edition for it"):
        refused[0].planned()


def test_flags_narrow_the_matrix_and_a_product_chooses_its_plan() -> None:
    found = choice.matrix(REAL, choice.Asked(variant="mxfp8", arch="mi325x"))
    assert [each.planned().target.product for each in found] == ["mi325x"]
    with pytest.raises(errors.BadInput, match=r"no target of the matrix has 0\.24\.0") as caught:
        choice.matrix(REAL, choice.Asked(release="0.24.0"))
    assert "./inv plan --all" in caught.value.hint


def test_unknown_names_in_the_matrix_are_found(catalog_copy: Path) -> None:
    path = catalog_copy / "images/releases.yaml"
    data = yaml.safe_load(path.read_text())
    data["matrix"] = {"releases": ["9.9.9"], "variants": ["mxfp9"], "arches": ["gfx94"]}
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(errors.BadInput) as caught:
        catalog.load(catalog_copy)
    lines = [line for line in caught.value.message.splitlines() if ": matrix: " in line]
    assert [line.partition(";")[0] for line in lines] == [
        "images/releases.yaml: matrix: unknown release '9.9.9'",
        "images/releases.yaml: matrix: unknown variant 'mxfp9'",
        "images/releases.yaml: matrix: unknown arch 'gfx94'",
    ]


def test_every_target_has_its_row_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    def work(plan: Plan, reporter: Reporter) -> Receipt | None:
        with reporter.step("work"):
            outcomes: dict[str, Callable[[], Receipt | None]] = {
                "bf16": lambda: replace(MADE, unchanged=True),
                "mxfp8": lambda: fail(errors.NotApplied("it does not apply\nin file x", hint="look")),
                "nvfp4": lambda: fail(OSError(28, "No space left on device", "/x")),
                "mxfp4": lambda: MADE,
            }
            return outcomes[plan.target.variant]()

    picked = [
        next(each for each in choice.matrix(REAL, choice.Asked(variant=variant)))
        for variant in ("bf16", "mxfp8", "nvfp4", "mxfp4")
    ]
    refused = Chosen(target="refused", error=errors.BadInput("patch x has no edition"))
    rows = many.run([*picked, refused], work, jobs=2)
    assert [row.outcome for row in rows] == ["unchanged", "failed", "failed", "built", "refused"]
    capsys.readouterr()
    with pytest.raises(errors.NotApplied, match="3 of 5 targets were refused or failed") as caught:
        show.show_rows(rows, json=False)
    assert caught.value.hint == "look"
    cells = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in cells[1:]] == ["unchanged", "failed", "failed", "built", "refused"]
    assert cells[2][3:] == ["it", "does", "not", "apply"]
    assert cells[3][3:] == ["/x:", "No", "space", "left", "on", "device"]
    with pytest.raises(errors.NotApplied):
        show.show_rows(rows, json=True)
    data = json.loads(capsys.readouterr().out)
    assert [row["error"]["exit_code"] if row["error"] else 0 for row in data] == [0, 5, 2, 0, 2]
    assert data[0]["receipt"]["unchanged"]


def fail(error: Exception) -> Receipt:
    raise error


def test_no_more_jobs_run_than_are_allowed() -> None:
    lock, running, most = threading.Lock(), set[str](), list[int]()

    def work(plan: Plan, _: Reporter) -> None:
        with lock:
            running.add(plan.target.slug)
            most.append(len(running))
        time.sleep(0.02)
        with lock:
            running.discard(plan.target.slug)

    rows = many.run(choice.matrix(REAL, choice.Asked()), work, jobs=3)
    assert {row.outcome for row in rows} == {"rehearsed"}
    assert max(most) == 3
    assert many.worst(rows) is None


def test_a_fault_of_our_own_ends_the_programs_of_the_others() -> None:
    """As an interrupt does: what is not an error of a target stops them all."""
    started = threading.Event()

    def work(plan: Plan, _: Reporter) -> None:
        if plan.target.slug == NAMES[0]:
            started.wait()
            raise ZeroDivisionError
        process.show(process.python("-c", "print('up', flush=True); import time; time.sleep(60)"), line=up)

    def up(_: str) -> None:
        started.set()

    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        many.run(CHOSEN, work, jobs=2)
    assert time.monotonic() - begun < 10


def test_after_the_end_nothing_new_begins() -> None:
    together = process.Together()
    together.end()
    with together.joined(), pytest.raises(KeyboardInterrupt):
        process.run(process.python("-c", "import time; time.sleep(60)"))
    assert process.run(process.python("-c", "print(1)")).stdout == "1\n"


def test_lines_of_jobs_have_their_names() -> None:
    stream = io.StringIO()
    reporter = Among("one", stream)
    with reporter.step("build") as detail:
        detail("#1 hello")
    first, last = stream.getvalue().splitlines()
    assert first == "one | … build"
    assert last.startswith("one | ✓ build  0.")


NAME_ONE = "name one: --to HOST/REPOSITORY, or publish in kiln.yaml"


@pytest.mark.parametrize(
    ("order", "flags", "message", "hint"),
    [
        (orders.Order(), {"push": True}, "--push: no repository is named", NAME_ONE),
        (
            orders.Order(thin=True),
            {},
            "--thin: no repository is named, and the engine never gets it",
            NAME_ONE,
        ),
        (
            orders.Order(thin=True, twin=True),
            {"to": "host:5000/r"},
            "--thin: a twin has no base to lay a layer over",
            "leave out --thin",
        ),
        (
            orders.Order(thin=True, builder="b"),
            {"to": "host:5000/r"},
            "--thin: only the engine's own builder can do it",
            "leave out --builder",
        ),
        (
            orders.Order(dry_run=True, rebuild=True, builder="b"),
            {"to": "host:5000/r"},
            "--dry-run builds nothing, so it takes no --builder, --rebuild, --to",
            "leave out --builder, --rebuild, --to",
        ),
        (
            orders.Order(rebuild=True, builder="b"),
            {"show": True, "to": "host:5000/r"},
            "--print shows the builds of whole images and makes none, so it takes no --builder, --rebuild",
            "leave out --builder, --rebuild",
        ),
        (
            orders.Order(),
            {"to": "host.example/repo:tag"},
            "--to host.example/repo:tag: a repository, without a tag or digest",
            "--to host.example/repo",
        ),
        (
            orders.Order(),
            {"to": "team/vllm"},
            "--to team/vllm: names no registry",
            "--to registry.example.com/team/vllm; docker.io/team/vllm",
        ),
    ],
)
def test_an_order_that_contradicts_itself_is_refused(
    order: orders.Order, flags: dict[str, object], message: str, hint: str
) -> None:
    given = {"push": False, "to": ""} | flags
    with pytest.raises(errors.BadInput) as caught:
        orders.checked(order, REAL, **given)  # type: ignore[arg-type]  # one value a name
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize("name", ["localhost/r", "host:1/r", "host.example/a/b", "docker.io/team/vllm"])
def test_a_repository_names_its_registry(name: str) -> None:
    assert str(destination.repository_of(name)) == name


def test_a_registry_that_does_not_answer_is_found_before_the_first_build() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dead = f"127.0.0.1:{server.getsockname()[1]}/team/vllm"
    with pytest.raises(errors.Missing):
        orders.reach(orders.Order(repository=dead), REAL)
    orders.reach(orders.Order(), REAL)


def test_a_document_of_refused_targets_names_each() -> None:
    chosen = [*CHOSEN, *(Chosen(target=name, error=errors.BadInput(f"no edition for {name}")) for name in "ab")]
    with pytest.raises(errors.BadInput) as caught:
        orders.document(orders.Order(), REAL, chosen, Reporter(quiet=True))
    assert caught.value.message == "a: no edition for a\nb: no edition for b"


def test_a_push_goes_where_kiln_yaml_says_unless_told_otherwise() -> None:
    there = replace(REAL, config=REAL.config.model_copy(update={"publish": "host.example/ours"}))
    assert orders.checked(orders.Order(), there, push=True, to="").repository == "host.example/ours"
    assert orders.checked(orders.Order(thin=True), there, push=False, to="").repository == "host.example/ours"
    assert orders.checked(orders.Order(), there, push=True, to="host:1/theirs").repository == "host:1/theirs"
    assert not orders.checked(orders.Order(), there, push=False, to="").repository


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", "", "65", "1000000", "٣", "²"])
def test_no_number_of_jobs(text: str) -> None:
    with pytest.raises(errors.BadInput, match="not a number of builds"):
        orders.jobs(text)


def test_a_receipt_is_read_as_it_was_written(tmp_path: Path) -> None:
    receipt.write(tmp_path, MADE)
    assert receipt.read(tmp_path, "twin") == MADE
    assert receipt.read(tmp_path, "rocm") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"target": "t"}'])
def test_a_receipt_of_another_form_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "twin.json").write_text(text)
    assert receipt.read(tmp_path, "twin") is None
