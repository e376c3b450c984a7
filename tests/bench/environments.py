"Virtual environments of peers, each made when it is first asked for."
import os
import shutil
import subprocess
import sys
from pathlib import Path

from scalai_nb.core.lock import locked


def environment(name: str, packages: list[str]) -> Path:  # its Python
    """Install packages into an environment next to this Python's own packages, or in the folder `SCALAI_PEERS`, where
    that was not done. Raises `RuntimeError` with the installer's reason."""
    home = Path(os.environ.get("SCALAI_PEERS") or Path(sys.prefix)/"peers")/name
    python, done, wanted = home/"bin"/"python", home/"done", "\n".join(packages)
    home.parent.mkdir(parents=True, exist_ok=True)
    with locked(f"{home}.lock"):
        if not done.exists() or done.read_text() != wanted:
            print(f"{name}: making its environment", file=sys.stderr, flush=True)
            shutil.rmtree(home, ignore_errors=True)
            uv = [sys.executable, "-m", "uv"]
            for command in ([*uv, "venv", "--seed", "--quiet", "--python", sys.executable, str(home)],
                            [*uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python),
                             *packages]):
                made = subprocess.run(command, capture_output=True, text=True)
                if made.returncode: raise RuntimeError(" ".join(made.stderr.split())[:300])
            done.write_text(wanted)
    return python
