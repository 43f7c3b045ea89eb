"""Sample texts in many languages, for calibration, accuracy checks and speed measurements."""

from __future__ import annotations

import importlib.resources


def load_sample_texts() -> list[str]:
    """Return about 400 texts, always the same for one version of the package.

    int8 vectors are quantized with ranges that come from these texts: changing the file changes those
    vectors, so a change belongs under "Changed" in the changelog.
    """
    resource = importlib.resources.files("infinity_emb") / "backends" / "sample_texts.txt"
    lines = resource.read_text(encoding="utf-8").split("\n")
    return [text for line in lines if (text := line.strip())]
