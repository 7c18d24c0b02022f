"""The listing of the public schemas, and the version that a change of them needs."""

import re
import tomllib
from pathlib import Path

import pytest

from zonos2_triton.bench.compiler import op_schema
from zonos2_triton.bench.compiler.op_schema import COMMAND, LISTING, as_text, changes, needed, read, registered, write

OLD = {"f": "z::f(Tensor x, Tensor(a1!) y, float eps, SymInt n=1) -> (Tensor, Tensor)", "g": "z::g(Tensor x) -> Tensor"}
F = OLD["f"]


def test_the_registered_schemas_are_those_of_the_listing():
    """Whoever changes one decides for a version, and commits the listing with it."""
    listed = read(LISTING)
    found = changes(listed["ops"], registered())
    assert not found, f"{as_text(found)}\nneeds version {needed(listed['version'], found)}; {COMMAND}"
    assert listed["ops"].keys() == registered().keys()


@pytest.mark.parametrize(
    ("level", "new", "text"),
    [
        ("major", None, "f is gone"),
        ("major", F.replace("Tensor x, ", ""), "f: argument 0 is y, it was x"),
        ("major", F.replace(", SymInt n=1", ""), "f: argument n is gone"),
        ("major", F.replace("eps", "epsilon"), "f: argument 2 is epsilon, it was eps"),
        ("major", F.replace("Tensor x, Tensor(a1!) y", "Tensor(a0!) y, Tensor x"), "f: argument 0 is y, it was x"),
        ("major", F.replace("float eps", "int eps"), "f: argument eps is int, it was float"),
        ("major", F.replace("Tensor x", "Tensor(a0!) x"), "f: argument x is Tensor!, it was Tensor"),
        ("major", F.replace("Tensor(a1!) y", "Tensor y"), "f: argument y is Tensor, it was Tensor!"),
        ("major", F.replace("n=1", "n=1, *, int m"), "f: argument m is new, without a default"),
        ("major", F.replace("SymInt n", "int m=1, SymInt n"), "f: argument 3 is m, it was n"),
        ("major", F.replace("n=1", "n=2"), "f: argument n is by default 2, it was by default 1"),
        ("major", F.replace("n=1", "n"), "f: argument n is without a default, it was by default 1"),
        ("major", F.replace("SymInt n", "*, SymInt n"), "f: argument n is given by name alone"),
        ("major", F.replace("(Tensor, Tensor)", "Tensor"), "f: returns Tensor, it was Tensor, Tensor"),
        ("major", F.replace("(Tensor, Tensor)", "()"), "f: returns nothing, it was Tensor, Tensor"),
        ("major", F.replace(", Tensor)", ", Tensor?)"), "f: returns Tensor, Tensor?, it was Tensor, Tensor"),
        ("major", F.replace(", Tensor)", ", Tensor z)"), "f: returns Tensor, Tensor z, it was Tensor, Tensor"),
        ("minor", F.replace("n=1", "n=1, bool b=False"), "f: argument b is new, by default False"),
        ("minor", F.replace("n=1", "n=1, Tensor(a4!)? c=None"), "f: argument c is new, by default None"),
        ("minor", F.replace("Tensor x", "Tensor? x"), "f: argument x is Tensor?, it was Tensor"),
        ("minor", F.replace("Tensor(a1!) y", "Tensor(a1!)? y"), "f: argument y is Tensor!?, it was Tensor!"),
        ("minor", F.replace("eps", "eps=0.5"), "f: argument eps is by default 0.5, it was without a default"),
        ("patch", F.replace("a1", "a7"), f"f is written {F.replace('a1', 'a7')}, it was {F}"),
    ],
)
def test_each_change_has_its_level(level, new, text):
    changed = {**OLD, "f": new} if new else {"g": OLD["g"]}
    assert (level, text) in changes(OLD, changed)
    assert {found.level for found in changes(OLD, changed)} == {level}


def test_the_way_back_from_optional_is_major():
    optional = {**OLD, "f": F.replace("Tensor x", "Tensor? x")}
    assert changes(optional, OLD) == [("major", "f: argument x is Tensor, it was Tensor?")]


def test_a_new_operation_is_minor_and_the_same_ones_are_nothing():
    assert changes({"g": OLD["g"]}, OLD) == [("minor", "f is new")]
    assert changes(OLD, {**OLD}) == []


@pytest.mark.parametrize(
    ("levels", "least"),
    [(["major", "patch"], "2.0.0"), (["patch", "minor"], "1.3.0"), (["patch"], "1.2.4"), ([], "1.2.3")],
)
def test_the_greatest_change_decides(levels, least):
    assert needed("1.2.3", [op_schema.Change(level, "") for level in levels]) == least


def test_a_listing_is_written_at_a_version_that_is_high_enough(tmp_path):
    path, more = tmp_path / "schemas.json", {**OLD, "h": OLD["g"]}
    write(path, "1.0.0", OLD)
    assert read(path) == {"version": "1.0.0", "ops": OLD}
    for low in ("1.0.0", "1.0.9", "0.9.0"):
        with pytest.raises(ValueError, match=rf"^version {low} is too low, at least 1\.1\.0 is needed:\nminor: h is"):
            write(path, low, more)
    assert read(path)["version"] == "1.0.0"
    write(path, "1.1.0", more)
    write(path, "1.1.0", more)
    assert read(path) == {"version": "1.1.0", "ops": more}
    with pytest.raises(ValueError, match=r"too low, at least 2\.0\.0"):
        write(path, "1.9.0", OLD)
    with pytest.raises(ValueError, match=r"a version is three numbers, such as 1\.2\.0, got '3'"):
        write(path, "3", OLD)


def test_the_command_says_what_changed_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(op_schema, "LISTING", tmp_path / "schemas.json")
    monkeypatch.setattr(op_schema, "registered", lambda: OLD)
    assert (op_schema.main(["--write", "1.0.0"]), op_schema.main([])) == (0, 0)
    monkeypatch.setattr(op_schema, "registered", lambda: {"g": OLD["g"]})
    capsys.readouterr()
    assert op_schema.main([]) == 1
    assert capsys.readouterr().out == f"major: f is gone\nneeds version 2.0.0: {COMMAND}\n"
    with pytest.raises(SystemExit, match="2"):
        op_schema.main(["--write", "1.1.0"])
    assert "version 1.1.0 is too low, at least 2.0.0 is needed" in capsys.readouterr().err


def test_the_listing_is_in_the_wheel():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert f"*{LISTING.suffix}" in project["tool"]["setuptools"]["package-data"]["*"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", read(LISTING)["version"])
