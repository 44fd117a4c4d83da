"""Public names of packages: all found, each imported when it is asked for."""

import subprocess
import sys
from importlib import import_module

import pytest

from dinov2_hf.lazy_names import lazy_names


@pytest.mark.parametrize("package", ["dinov2_hf", "dinov2_hf.models", "dinov2_hf.pretraining"])
def test_every_public_name_is_found(package):
    module = import_module(package)
    assert len(module.__all__) > 4
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Dinov3'"):
        _ = module.Dinov3


def test_a_name_is_imported_when_it_is_asked_for(tmp_path, monkeypatch):
    folder = tmp_path / "lazy_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .inner import first\n"
    )
    (folder / "inner.py").write_text("first = [1]\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = import_module("lazy_package")
    find, names, public = lazy_names("lazy_package")
    assert public == ["first"]
    assert "first" in names()
    assert "lazy_package.inner" not in sys.modules
    assert find("first") == [1]
    assert module.first is find("first")


def test_importing_the_package_imports_no_library():
    code = """
import sys
before = set(sys.modules)
import dinov2_hf
assert dinov2_hf.__version__ and dinov2_hf.__all__
strangers = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names) - {"dinov2_hf"}
assert not strangers, strangers
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
