"""`/admin/models`: models come and go while the server runs. Exists only where there is an admin key.

Knows nothing of how a model is loaded; `ServedEngines` does it. `auth.py` asks for the key.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Body
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.errors import UnknownModel
from infinity_emb.server.api_route import ApiRoute
from infinity_emb.server.encode import json_response
from infinity_emb.server.error_docs import LOAD_ERRORS, NAME_IN_USE, NOT_FOUND, NOT_READY, Documented
from infinity_emb.server.model_entry import describe_model
from infinity_emb.server.schemas.admin import LOAD_EXAMPLES, AdminModelList, LoadRequest, UnloadedModel
from infinity_emb.server.schemas.models import ModelEntry
from infinity_emb.server.served_engines import ServedEngines
from infinity_emb.server.validation import body_error

ADMIN_PATH = "/admin"


class AdminRoute:
    """The handlers, over one app's engines. Each answers when what it was asked for is done."""

    def __init__(self, served: ServedEngines) -> None:
        self._served = served

    def routes(self) -> list[ApiRoute]:
        """Where the handlers are reached."""
        models, model = f"{ADMIN_PATH}/models", f"{ADMIN_PATH}/models/{{model_id:path}}"
        of_one: dict[int | str, Documented] = {404: NOT_FOUND, 409: NAME_IN_USE, 503: NOT_READY}
        return [
            ApiRoute(
                path=models,
                method="GET",
                answer=self.list_models,
                response_model=AdminModelList,
                errors={503: NOT_READY},
                is_at_v1=False,
            ),
            ApiRoute(
                path=models,
                method="POST",
                answer=self.load_model,
                response_model=ModelEntry,
                errors=LOAD_ERRORS,
                is_at_v1=False,
            ),
            ApiRoute(
                path=f"{model}/reload",
                method="POST",
                answer=self.reload_model,
                response_model=ModelEntry,
                errors={**of_one, **{status: LOAD_ERRORS[status] for status in (400, 422, 507)}},
                is_at_v1=False,
            ),
            ApiRoute(
                path=model,
                method="DELETE",
                answer=self.unload_model,
                response_model=UnloadedModel,
                errors={**of_one, 422: LOAD_ERRORS[422]},
                is_at_v1=False,
            ),
        ]

    async def list_models(self) -> Response:
        """As `/models`, with the names of those that are being loaded, unloaded or reloaded."""
        entries = [describe_model(engine, self._served.started_at) for engine in self._served.array]
        return json_response({"data": entries, "changing": sorted(self._served.changing), "object": "list"})

    async def load_model(
        self, body: Annotated[LoadRequest, Body(openapi_examples=LOAD_EXAMPLES)], request: Request
    ) -> Response:
        """Load a model and serve it; any option of the command line's may be given, and none is inherited.

        The answer comes when the model serves, after seconds or minutes. Nobody else waits for that.
        """
        args = body.engine_args()
        if args.trust_remote_code and not self._served.may_run_code:
            message = "is refused: the server itself was started without --trust-remote-code"
            raise body_error("option", message, loc=["trust_remote_code"], given=True)
        engine = await self._served.load(args)
        return json_response(describe_model(engine, self._served.started_at))

    async def unload_model(self, model_id: str) -> Response:
        """Serve a model no longer: what it accepted is finished, then its memory is given back."""
        engine = self._find(model_id)
        await self._served.unload(engine)
        name = engine.engine_args.served_model_name
        return json_response({"id": name, "object": "model", "deleted": True})

    async def reload_model(self, model_id: str) -> Response:
        """Load a model anew, after what it accepted; requests for it wait meanwhile.

        Where that fails the model stays unloaded, and the next request tries again.
        """
        engine = self._find(model_id)
        await self._served.reload(engine)
        return json_response(describe_model(engine, self._served.started_at))

    def _find(self, name: str) -> AsyncEmbeddingEngine:
        try:
            return self._served.array[name]
        except UnknownModel as exc:
            raise HTTPException(404, str(exc)) from None
