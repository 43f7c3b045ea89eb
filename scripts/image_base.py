"""Make the image `debian:bookworm-slim` from Debian's packages, for machines without a registry of images."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

BASE = "docker.io/library/debian:bookworm-slim"
# What Debian leaves out of its slim images.
EXCLUDED = ("doc", "groff", "info", "linda", "lintian", "locale", "man")
# Debian's images keep no packages that were installed, and no index of them in binary form.
CLEAN = """
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""


def make_base_image(folder: Path) -> None:
    """Put the base image into the store of buildah, if it is not there."""
    known = subprocess.run(["buildah", "inspect", "--type", "image", BASE], capture_output=True, check=False)
    if known.returncode == 0:
        return
    root = folder / "base"
    _run("debootstrap", "--variant=minbase", "bookworm", str(root))
    for name in EXCLUDED:
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    for path in (root / "var/cache/apt/archives").glob("*.deb"):
        path.unlink()
    (root / "etc/apt/apt.conf.d/docker-clean").write_text(CLEAN)
    (root / "etc/dpkg/dpkg.cfg.d/docker").write_text(
        "".join(f"path-exclude /usr/share/{name}/*\n" for name in EXCLUDED)
    )
    container = subprocess.run(
        ["buildah", "from", "scratch"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    _run("buildah", "add", "--quiet", container, str(root), "/")
    _run("buildah", "config", "--cmd", "bash", container)
    _run("buildah", "commit", "--quiet", "--rm", container, BASE)


def _run(*words: str) -> None:
    subprocess.run(words, stdout=sys.stderr, check=True)
