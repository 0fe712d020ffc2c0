"""Drivers from outside: found by their entry points, used like ours, and never able to break the list of what there is."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from eventcore_lab import cli
from eventcore_lab.events import NewEvent, StreamId, StreamWrite
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import PoolSettings, protocol, stores
from eventcore_lab.stores.conformance import CLAIMS, NotKept, suite
from eventcore_lab.stores.memory import Memory, _InProcess

ROOT = Path(__file__).parent.parent


def journal_example() -> tuple[str, str]:
    """The module and the pyproject of CONTRIBUTING.md's own store."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    [module] = [part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Journal" in part]
    [project] = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    return module, project


def installed(folder: Path, modules: Mapping[str, str], offers: Mapping[str, str], package: str = "foreign") -> None:
    """A distribution in `folder`, as pip would leave it: modules, and a dist-info with entry points."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    info = folder / f"{package}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    lines = [f"{name} = {value}" for name, value in offers.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{protocol.ENTRY_POINTS}]", *lines, ""]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


GOOD = """
from eventcore_lab.stores.memory import Memory, _InProcess
def good(*, size: int = 3):
    "A good one."
    return _InProcess("good", Memory, "none")
def raises(*, size: int = 3):
    "Raises."
    raise RuntimeError("no licence")
def refuses(*, size: int = 3):
    "Refuses."
    raise ValueError("size is too small")
def untyped(*, size=3):
    "An option without a type."
def unresolved(*, size: "Nowhere" = 3):
    "An option of a type that is nowhere."
def strange():
    "Makes something else."
    return object()
number = 7
"""


def test_a_foreign_store_is_listed_and_used_like_ours(folder: Path) -> None:
    installed(folder, {"foreign_good": GOOD}, {"good": "foreign_good:good"})
    registry = protocol._Stores()
    assert registry.describe()["good"] == ("good:size=3", "A good one.")
    assert isinstance(registry.make("good:size=4"), _InProcess)
    with pytest.raises(UsageError, match="unknown option"):
        registry.make("good:sise=4")


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("foreign_bad:nothing", "ModuleNotFoundError"),
        ("foreign_good:nothing", "AttributeError"),
        ("foreign_good:number", "TypeError"),
        ("foreign_good:untyped", "size"),
        ("foreign_good:unresolved", "Nowhere"),
        ("foreign_syntax:x", "SyntaxError"),
        ("foreign_raising:x", "ZeroDivisionError"),
    ],
)
def test_a_broken_foreign_store_is_listed_with_the_reason(folder: Path, value: str, part: str) -> None:
    modules = {"foreign_good": GOOD, "foreign_syntax": "def x(:\n", "foreign_raising": "1 / 0\n"}
    installed(folder, modules, {"bad": value, "good": "foreign_good:good"})
    registry = protocol._Stores()
    usage, text = registry.describe()["bad"]
    assert usage == "bad" and text.startswith("cannot be used: store bad of foreign (") and part in text
    assert registry.describe()["good"][1] == "A good one."
    with pytest.raises(UsageError, match="store bad of foreign"):
        registry.make("bad")


@pytest.mark.parametrize(
    ("name", "part"), [("raises", "no licence"), ("strange", "no is_shared"), ("refuses", "size is too small")]
)
def test_what_goes_wrong_in_a_foreign_function_is_a_mistake_with_its_name(folder: Path, name: str, part: str) -> None:
    installed(folder, {"foreign_good": GOOD}, {name: f"foreign_good:{name}"})
    registry = protocol._Stores()
    assert not registry.describe()[name][1].startswith("cannot")
    with pytest.raises(UsageError, match=f"store {name}.*{part}"):
        registry.make(name)


def test_of_equal_names_ours_wins_and_the_list_says_so(folder: Path) -> None:
    installed(folder, {"foreign_good": GOOD}, {"mine": "foreign_good:raises"})
    registry = protocol._Stores()
    registry.register("mine")(lambda: _InProcess("mine", Memory, "none"))
    assert isinstance(registry.make("mine"), _InProcess)
    assert "not used: the mine of foreign (foreign_good:raises)" in registry.describe()["mine"][1]


def test_a_name_that_two_packages_offer_is_neithers(folder: Path) -> None:
    installed(folder, {"foreign_good": GOOD}, {"good": "foreign_good:good"})
    installed(folder, {}, {"good": "foreign_good:raises"}, "other")
    registry = protocol._Stores()
    assert "offered by" in registry.describe()["good"][1]
    with pytest.raises(UsageError, match=r"foreign \(.*uninstall one"):
        registry.make("good")


def test_ours_needs_the_extra_and_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "eventsourcing" else found(name, *a)
    )
    monkeypatch.delitem(sys.modules, "eventcore_lab.stores.eventsourcing", raising=False)
    entry = EntryPoint("eventsourcing", "eventcore_lab.stores.eventsourcing:eventsourcing", protocol.ENTRY_POINTS)
    monkeypatch.setattr(protocol, "entry_points", lambda **_: [entry])
    registry = protocol._Stores()
    line = "store eventsourcing needs the extra: pip install 'eventcore_lab[eventsourcing]'"
    assert registry.describe() == {"eventsourcing": ("eventsourcing", f"cannot be used: {line}")}
    with pytest.raises(UsageError) as raised:
        registry.make("eventsourcing:popo")
    assert str(raised.value) == line


def test_the_store_of_the_documents_is_what_it_says_it_is(folder: Path) -> None:
    module, project = journal_example()
    offers = tomllib.loads(project)["project"]["entry-points"][protocol.ENTRY_POINTS]
    installed(folder, {"journal": module}, offers, "journal-store")
    command = [sys.executable, "-m", "eventcore_lab"]
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error"}
    for arguments, wanted in ((["list"], "journal:fsync=False"), (["conformance", "journal"], f"{len(CLAIMS)} kept")):
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        assert wanted in done.stdout


async def test_the_store_of_the_documents_reads_its_file_back(folder: Path) -> None:
    installed(folder, {"journal": journal_example()[0]}, {"journal": "journal:journal"})
    driver = protocol._Stores().make("journal:fsync=true")
    async with driver.provision() as place:
        store = await driver.connect(place.address, PoolSettings())
        events = (NewEvent("T", b"\x00\xff"), NewEvent("T", b"{}"))
        await store.append([StreamWrite(StreamId("s"), 0, events)])
        await store.close()
        again = await driver.connect(place.address, PoolSettings())
        found = (await again.read_stream(StreamId("s"))).events
        await again.close()
    assert [(e.id, e.data) for e in found] == [(e.id, e.data) for e in events]


# The command `conformance`


def conformance(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    sys.argv = ["eventcore-lab", "conformance", *arguments]
    with pytest.raises(SystemExit) as done:
        cli.main()
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


def test_a_store_that_keeps_everything_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = conformance(capsys, "memory")
    assert code == 0 and out.endswith(f"\nmemory: {len(CLAIMS)} kept\n")
    assert max(map(len, out.splitlines())) <= 80


def test_a_broken_claim_ends_with_5_and_says_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    mutant = "mutant(memory):ignored_expectation,every=2"
    code, out, _ = conformance(capsys, mutant, "--only", "stale version")
    assert code == 5
    assert "broken          a stale version conflicts and names the actual one\n" in out and "was due" in out
    assert out.endswith(f"{mutant}: 1 broken\n")


def test_a_store_that_keeps_nothing_is_not_tried(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = conformance(capsys, "null")
    assert code == 2 and "keeps nothing" in err


def test_a_lacking_claim_is_shown_with_the_reason_and_one_kept_after_all_ends_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "streams do not mix"
    monkeypatch.setattr(_InProcess, "lacks", {name: "they do"})
    code, out, _ = conformance(capsys, "memory", "--only", name)
    assert (code, out.splitlines()[-1]) == (1, "memory: 1 kept after all")

    async def broken(*_: object) -> None:
        raise NotKept("x")

    monkeypatch.setitem(CLAIMS, name, suite.Claim(name, "", broken))
    code, out, _ = conformance(capsys, "memory", "--only", name)
    assert (code, out.splitlines()[0]) == (0, f"lacking         {name}") and "they do" in out


def test_a_lack_that_shows_only_now_and_then_is_looked_at_more_than_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, tries = "streams do not mix", []

    async def rarely_broken(*_: object) -> None:
        tries.append(1)
        if len(tries) == suite.LACKING_TRIES_MAX:
            raise NotKept("x")

    monkeypatch.setattr(_InProcess, "lacks", {name: "they do"})
    monkeypatch.setitem(CLAIMS, name, suite.Claim(name, "", rarely_broken))
    code, out, _ = conformance(capsys, "memory", "--only", name)
    assert (code, out.splitlines()[-1]) == (0, "memory: 1 lacking")


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["possgres"], 2, "did you mean postgres?"),
        (["memory", "--only", "no such thing"], 2, "no claim has 'no such thing' in its name"),
        ([], 2, "Missing argument"),
        (["env:LAB_DSN"], 4, "no PostgreSQL server answers"),
    ],
)
def test_a_mistake_or_no_server_gets_one_line_and_its_code(
    arguments: list[str], code: int, part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_DSN", "postgresql://me:geheim@127.0.0.1:1/db")
    found, out, err = conformance(capsys, *arguments)
    assert (found, err.count("\n"), out) == (code, 1, "")
    assert part in err and "geheim" not in err


def test_ctrl_c_ends_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(CLAIMS, "streams do not mix", suite.Claim("streams do not mix", "", interrupted))
    code, _, err = conformance(capsys, "memory")
    assert (code, "interrupted" in err) == (130, True)


def test_a_claim_that_there_is_not_cannot_be_lacking(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_InProcess, "lacks", {"no claim": "x"})
    assert conformance(capsys, "memory")[0] == 2
    assert stores.make("memory").lacks
