"""The wheel holds everything and works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "sage_prefect": ROOT / "sage_prefect",
    "sage_gateway": ROOT / "gateway" / "sage_gateway",
    "sage_blocks": ROOT / "blocks" / "sage_blocks",
    "sage_bench": ROOT / "benchmarks" / "sage_bench",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Not isolated: the build backend of the developer's environment; no index is asked.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "build", "--wheel", "--no-isolation", str(ROOT)),
            *("--outdir", str(folder), f"-Cbuild-dir={folder / 'build'}"),
        ],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    (made,) = folder.glob("*.whl")
    return made


def test_everything_is_in_it(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "-z", *(str(folder) for folder in PACKAGES.values())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = [ROOT / name for name in tracked.split("\0") if name]
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in paths
        if path.is_relative_to(folder) and path.exists()
    }
    assert expected - inside == set()
    assert any(name.startswith("sage_prefect/_native.") for name in inside)
    stray = {name.partition("/")[0] for name in inside if ".dist-info/" not in name}
    assert stray == set(PACKAGES)


def test_it_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    # -S: without the .pth file that leads to the checkout.
    done = subprocess.run(
        [
            *(sys.executable, "-S", "-c"),
            "import sage_prefect, sage_gateway, sage_bench, sage_prefect._native as native\n"
            "from sage_prefect import Pipeline\n"
            "report = Pipeline('p').source([{'a': 1}]).map(lambda row: row).sink().run()\n"
            "print(sage_prefect.__file__, native.__file__)\n"
            "from sage_prefect.cli.main import run\n"
            "raise SystemExit(run(['--version']))",
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(site), sysconfig.get_path("purelib")]),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    module, native = done.stdout.splitlines()[0].split()
    assert Path(module).is_relative_to(site)
    assert Path(native).is_relative_to(site)
    assert sage_version() in done.stdout


def sage_version() -> str:
    import sage_prefect

    return sage_prefect.__version__
