"""Declare the environments of the peers and of AIPerf, which are made once under `.venv-peers`.

After a change, `python -m benchmarks.peers.environments NAME …` writes the lists of packages of these again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scripts.environments import REPOSITORY, Environment, Environments

# The same torch everywhere, ours, so that a ratio compares what is built on it.
_TORCH = "torch==2.13.0"
_PLAIN_SERVER = ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0")

# torch is large, and its package is unpacked file by file.
_INSTALLING_S = 900
_FOLDER, _PINS = REPOSITORY / ".venv-peers", Path(__file__).parent / "pins"

PEERS = Environments(
    folder=_FOLDER,
    pins=_PINS,
    installing_s=_INSTALLING_S,
    by_name={
        # Newer versions of what it needs than these break it.
        "infinity_emb-0.0.77": Environment(
            asked=(
                "infinity-emb[server,torch,optimum]==0.0.77",
                "click<8.2",
                "transformers==4.47.0",
                "optimum==1.24.0",
                "sentence-transformers==3.3.1",
                "fastapi==0.115.2",
                "starlette==0.40.0",
                "prometheus-fastapi-instrumentator==7.0.0",
                "pydantic==2.9.2",
                "uvicorn==0.32.0",
                "numpy==1.26.4",
                "pyarrow<20",
                "datasets<3",
                _TORCH,
            )
        ),
        "sentence-transformers": Environment(
            asked=(
                "sentence-transformers==6.2.0",
                "transformers==5.23.0",
                "numpy==2.4.6",
                _TORCH,
                *_PLAIN_SERVER,
            )
        ),
        "fastembed": Environment(asked=("fastembed==0.9.1", "numpy==2.4.6", *_PLAIN_SERVER)),
    },
)

AIPERF = Environments(
    folder=_FOLDER,
    pins=_PINS,
    installing_s=_INSTALLING_S,
    by_name={"aiperf": Environment(asked=("aiperf==0.13.0",))},
)


if __name__ == "__main__":
    for each in sys.argv[1:]:
        (AIPERF if each in AIPERF.by_name else PEERS).write_pins(each)
