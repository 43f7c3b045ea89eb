"""Report at start what is served and where: a table in a terminal, a log line elsewhere."""

from __future__ import annotations

import importlib.util
import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infinity_emb.cli.load_display import StageTimes
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.hardware import process_age_s

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from infinity_emb.engine.array import AsyncEngineArray

logger = logging.getLogger("infinity_emb")


def draws_summary(config: ServerConfig) -> bool:
    """Return true if the log is shown as text in a terminal."""
    is_read = config.log_format == "text" and sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)
    return is_read and importlib.util.find_spec("rich") is not None


@dataclass(frozen=True, slots=True)
class StartSummary:
    """The models and addresses of a server that has just started."""

    engines: AsyncEngineArray
    config: ServerConfig
    url: str
    times: StageTimes

    def announce(self) -> None:
        """Print or log the summary."""
        pages = self._list_pages()
        age_s = process_age_s()
        if draws_summary(self.config):
            from rich.console import Console

            Console(stderr=True, highlight=False).print(self._draw(pages, age_s))
            return
        links = "".join(f", {name} at {url}" for name, url in pages.items())
        logger.info(
            "listening on %s%s, first vector after %.1f s",
            self.url,
            links,
            age_s,
            extra={"summary": self.to_dict(age_s)},
        )

    def to_dict(self, age_s: float) -> dict[str, Any]:
        """Return the values of a JSON object.

        age_s: of the process.
        """
        return {
            "url": self.url,
            **self._list_pages(),
            "limits": self._list_limits(),
            "first_vector_s": round(age_s, 3),
            "load_s": {stage: round(seconds, 3) for stage, seconds in self.times.seconds.items()},
            "models": [
                {
                    "id": engine.engine_args.served_model_name,
                    "capabilities": list(engine.info.capabilities),
                    "engine": engine.info.engine,
                    "device": engine.info.device,
                    "dtype": engine.info.dtype,
                    "max_tokens": engine.info.max_tokens,
                    "max_batch_tokens": engine.max_batch_tokens,
                }
                for engine in self.engines
            ],
        }

    def _list_pages(self) -> Mapping[str, str]:
        """Return the addresses of the enabled pages, by name."""
        below = f"{self.url}{self.config.url_prefix}"
        pages = {"metrics": f"{self.url}/metrics"} if self.config.metrics != "off" else {}
        pages |= {"page": f"{below}/ui"} if self.config.ui else {}
        return pages | ({"docs": f"{below}/docs"} if self.config.docs else {})

    def _list_limits(self) -> Mapping[str, int]:
        return {
            "max_client_batch_size": self.config.max_client_batch_size,
            "max_body_bytes": self.config.max_body_bytes,
            "max_connections": self.config.max_connections,
        }

    def _draw(self, pages: Mapping[str, str], age_s: float) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        models = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        models.add_column("model", overflow="fold", style="bold")
        for heading in ("can", "computed by", "tokens", "batch"):
            models.add_column(heading)
        for engine in self.engines:
            info = engine.info
            models.add_row(
                engine.engine_args.served_model_name,
                ", ".join(info.capabilities),
                f"{info.engine}, {info.device}, {info.dtype}",
                "any" if info.max_tokens is None else f"{info.max_tokens:,}",
                f"{engine.max_batch_tokens:,}",
            )
        config = self.config
        access = "a key is needed" if config.api_key or config.api_key_file else "no key is needed"
        limits = (
            f"{config.max_client_batch_size:,} inputs and {config.max_body_bytes / 2**20:,.0f} MiB a request,"
            f" {config.max_connections:,} connections, {access}"
        )
        places = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        start = {"first vector": _describe_start(age_s, self.times)}
        for name, value in {"server": self.url, **pages, "limits": limits, **start}.items():
            places.add_row(Text(name, style="dim"), value)
        return Group("", models, "", places, Text("Ctrl-C stops the server.", style="dim"))


def _describe_start(age_s: float, times: StageTimes) -> str:
    """Return the time until the first vector, and the stages that took the longest."""
    longest = sorted(times.seconds.items(), key=lambda each: -each[1])[:2]
    spent = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in longest if seconds >= 0.05)
    return f"after {age_s:.1f} s{spent and f', most of it {spent}'}"
