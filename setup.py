"""Metadata lives in pyproject.toml; this copies workflows/ and apps/ into the wheel, so that an installed `scalai` has them."""
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildWithShipped(build_py):
    def run(self):
        super().run()
        if self.editable_mode: return  # an editable install reads the folders of the checkout
        for folder in ("workflows", "apps"):
            target = Path(self.build_lib) / "scalai_nb" / "shipped" / folder
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(HERE / folder, target, ignore=shutil.ignore_patterns(".*", "__pycache__"))


setup(cmdclass={"build_py": BuildWithShipped})
