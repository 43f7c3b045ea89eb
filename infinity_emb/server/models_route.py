"""`/models`: what is served. Knows nothing of tasks."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import Response

from infinity_emb.errors import UnknownModel
from infinity_emb.server.api_route import ApiRoute
from infinity_emb.server.encode import json_response
from infinity_emb.server.error_docs import INVALID, NOT_FOUND, NOT_READY
from infinity_emb.server.model_entry import describe_model
from infinity_emb.server.schemas.models import ModelEntry, ModelList
from infinity_emb.server.served_engines import ServedEngines


class ModelsRoute:
    """The handlers, over one app's engines."""

    def __init__(self, served: ServedEngines) -> None:
        self._served = served

    def routes(self) -> list[ApiRoute]:
        """Where the handlers are reached."""
        return [
            ApiRoute(
                path="/models",
                method="GET",
                answer=self.models,
                response_model=ModelList,
                errors={503: NOT_READY},
            ),
            ApiRoute(
                path="/models/{model_id:path}",
                method="GET",
                answer=self.model,
                response_model=ModelEntry,
                errors={404: NOT_FOUND, 422: INVALID, 503: NOT_READY},
            ),
        ]

    async def models(self) -> Response:
        """Every served model, what was detected about it, and how full its queue is."""
        entries = [describe_model(engine, self._served.started_at) for engine in self._served.array]
        return json_response({"data": entries, "object": "list"})

    async def model(self, model_id: str) -> Response:
        """One served model, by name or alias; names may contain slashes."""
        if not model_id:  # GET /models/ with its slash
            return await self.models()
        try:
            engine = self._served.array[model_id]
        except UnknownModel as exc:
            raise HTTPException(404, str(exc)) from None
        return json_response(describe_model(engine, self._served.started_at))
