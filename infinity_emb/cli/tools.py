"""The commands beside the server. Each module has a `TOOL`, and imports heavy packages when it runs."""

from __future__ import annotations

from collections.abc import Mapping

from infinity_emb.cli import models
from infinity_emb.cli.bench import command as bench
from infinity_emb.cli.tool import Tool
from infinity_emb.cli.top import command as top

TOOLS: Mapping[str, Tool] = {"models": models.TOOL, "top": top.TOOL, "bench": bench.TOOL}
