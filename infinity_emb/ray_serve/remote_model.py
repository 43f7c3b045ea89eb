"""Send requests to the deployment of a model."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import EngineNotReady, Overloaded
from infinity_emb.ray_serve.model_server import ForwardedRequest
from infinity_emb.server.requests.in_process import Response
from infinity_emb.types import Capability, ModelInfo

# A request changes nothing, so it may be sent again when its replica is lost. Serve may choose the same one
# until it has noticed, so the pauses double: 3 s in all.
MAX_ATTEMPTS = 6
FIRST_PAUSE_S = 0.1


class RemoteModel:
    """The deployment of one model; looks like an engine to `AsyncEngineArray`, which finds it by name.

    handle: ray.serve.handle.DeploymentHandle.
    """

    def __init__(self, engine_args: EngineArgs, handle: Any) -> None:
        self.engine_args = engine_args
        self._handle = handle
        self._info: ModelInfo | None = None

    @property
    def info(self) -> ModelInfo:
        """Return what was detected about the model. Raises EngineNotReady before `load_info`."""
        if self._info is None:
            raise EngineNotReady(f"model {self.engine_args.served_model_name!r} is not loaded yet")
        return self._info

    @property
    def capabilities(self) -> set[Capability]:
        """Return the tasks that the model supports."""
        return set(self.info.capabilities)

    async def load_info(self, timeout_s: float) -> None:
        """Ask a replica for it, unless it is known. Raises EngineNotReady."""
        if self._info is None:
            self._info = await self._call("describe", timeout_s=timeout_s)

    async def answer(self, request: ForwardedRequest, timeout_s: float | None = None) -> Response:
        """Return the response of a replica. Raises Overloaded and EngineNotReady."""
        response: Response = await self._call("answer", request, timeout_s=timeout_s)
        return response

    async def _call(self, method: str, *arguments: object, timeout_s: float | None) -> Any:
        name = self.engine_args.served_model_name
        lost: Exception | None = None
        for attempt in range(MAX_ATTEMPTS):
            try:
                return await asyncio.wait_for(getattr(self._handle, method).remote(*arguments), timeout_s)
            except BackPressureError as exc:
                raise Overloaded(f"the replicas of model {name!r} are busy; try again later") from exc
            except asyncio.TimeoutError as exc:
                raise EngineNotReady(f"no replica of model {name!r} answers; try again later") from exc
            except RayTaskError:
                raise  # the replica lives, and the next one would fail as well
            except (RayError, DeploymentUnavailableError) as exc:
                lost = exc
                await asyncio.sleep(FIRST_PAUSE_S * 2**attempt)
        raise EngineNotReady(f"the replica of model {name!r} was lost; try again later") from lost
