"""The listing of the public schemas, and the version that a change of them needs."""

from itertools import product

import pytest

from zonos2_triton.bench.compiler import op_schema
from zonos2_triton.bench.compiler.op_schema import COMMAND, LISTING, as_text, changes, needed, read, registered, write

OLD = {"f": "z::f(Tensor x, Tensor(a1!) y, float eps, SymInt n=1) -> (Tensor, Tensor)", "g": "z::g(Tensor x) -> Tensor"}
F = OLD["f"]


def test_the_registered_schemas_are_those_of_the_listing():
    """A change of a schema needs a version, and the listing in the same commit."""
    listed = read(LISTING)
    found = changes(listed["ops"], registered())
    assert not found, f"{as_text(found)}\nneeds version {needed(listed['version'], found)}; {COMMAND}"
    assert listed["ops"].keys() == registered().keys()


MAJOR = [
    F.replace(", SymInt n=1", ""),
    F.replace("eps", "epsilon"),
    F.replace("Tensor x, Tensor(a1!) y", "Tensor(a0!) y, Tensor x"),
    F.replace("float eps", "int eps"),
    F.replace("Tensor x", "Tensor(a0!) x"),
    F.replace("Tensor(a1!) y", "Tensor y"),
    F.replace("n=1", "n=1, *, int m"),
    F.replace("n=1", "n=2"),
    F.replace("n=1", "n"),
    F.replace("SymInt n", "*, SymInt n"),
    F.replace("(Tensor, Tensor)", "Tensor"),
    F.replace(", Tensor)", ", Tensor?)"),
]
MINOR = [
    F.replace("n=1", "n=1, bool b=False"),
    F.replace("n=1", "n=1, Tensor(a4!)? c=None"),
    F.replace("Tensor x", "Tensor? x"),
    F.replace("Tensor(a1!) y", "Tensor(a1!)? y"),
    F.replace("eps", "eps=0.5"),
]


@pytest.mark.parametrize(("level", "new"), [*product(["major"], MAJOR), *product(["minor"], MINOR)])
def test_each_change_has_its_level(level, new):
    assert changes(OLD, {**OLD, "f": new}) == [(level, f"f is {new}, it was {F}")]


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
    assert (op_schema.main(["--update", "1.0.0"]), op_schema.main([])) == (0, 0)
    monkeypatch.setattr(op_schema, "registered", lambda: {"g": OLD["g"]})
    capsys.readouterr()
    assert op_schema.main([]) == 1
    assert capsys.readouterr().out == f"major: f is gone\nneeds version 2.0.0: {COMMAND}\n"
    with pytest.raises(SystemExit, match="2"):
        op_schema.main(["--update", "1.1.0"])
    assert "version 1.1.0 is too low, at least 2.0.0 is needed" in capsys.readouterr().err
