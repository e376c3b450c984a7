"""Metadata lives in pyproject.toml; this copies workflows/, apps/, examples/, share/ and the tutorials into the wheel, so that an installed
`scalai` has them; and build/docs/docs.zip, where `make docs` was run before.

share/ also goes to the environment's own share/, where any JupyterLab of that environment finds the launcher's cards.
"""
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildWithShipped(build_py):
    def run(self):
        super().run()
        if self.editable_mode: return  # an editable install reads the folders of the checkout
        shipped = Path(self.build_lib) / "scalai_nb" / "shipped"
        for folder in ("workflows", "apps", "examples", "share", "nbs/tutorials"):
            target = shipped / folder
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(HERE / folder, target, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        (shipped / "docs.zip").unlink(missing_ok=True)
        if (docs := HERE / "build" / "docs" / "docs.zip").is_file(): shutil.copyfile(docs, shipped / "docs.zip")


SHARE = [(str(d.relative_to(HERE)), [str(f.relative_to(HERE)) for f in sorted(d.iterdir()) if f.is_file()]) for d in sorted((HERE/"share").rglob("*")) if d.is_dir()]

setup(cmdclass={"build_py": BuildWithShipped}, data_files=[(place, files) for place, files in SHARE if files])
