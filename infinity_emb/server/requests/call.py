"""The request context that every handler receives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.types import Scope

from infinity_emb.engine.array import Resolved
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.server.requests.context import guess_flow
from infinity_emb.server.requests.fields import check_num_items, check_token_ids_allowed
from infinity_emb.server.requests.json_body import JsonReader, Schema
from infinity_emb.server.requests.memory import HeldMemory
from infinity_emb.server.schemas.common import TaskRequest
from infinity_emb.server.served_models import ServedModels
from infinity_emb.types import Capability

_REMEDY = ", or start the server with a larger --max-client-batch-size"


def get_model(scope: Scope) -> str:
    """Return the served name of the model that a request is for; "" until it is found."""
    name: str = scope.get("state", {}).get("model", "")
    return name


def note_model(scope: Scope, engine: AsyncEmbeddingEngine) -> None:
    """Note which model a request is for, under its first name."""
    scope.setdefault("state", {})["model"] = engine.engine_args.served_model_name


def check_room(
    scope: Scope, models: ServedModels, schema: type[TaskRequest], fields: Mapping[str, object]
) -> None:
    """Reject a request before it is validated if the queue is full: a rejection must be cheap.

    Raises Overloaded.
    """
    engine = models.guess_engine(fields.get("model"))
    if engine is None:
        return
    note_model(scope, engine)
    if engine.gate.admission.has_refused:
        engine.gate.check_room(guess_flow(scope, schema, fields))


class Call(NamedTuple):
    """One request, the models that can serve it, and the limits that apply to it.

    held: what its body takes in memory.
    """

    request: Request
    models: ServedModels
    max_client_batch_size: int
    bodies: JsonReader
    held: HeldMemory

    async def validate(self, schema: type[Schema], fields: dict[str, Any]) -> Schema:
        """Fit fields of the body to another schema. Raises RequestValidationError."""
        return await self.bodies.validate(schema, fields, self.held)

    def resolve(self, body: TaskRequest, capability: Capability, inputs: Sequence[object]) -> Resolved:
        """Check the number of inputs and return the engine that serves the request.

        Also returns the input type in the suffix of the model's name.
        Raises RequestValidationError for too many inputs, UnknownModel and EngineNotReady.
        """
        self.check_num_inputs(body, inputs)
        return self.find_engine(body.model_name, capability)

    def find_engine(self, name: str | None, capability: Capability) -> Resolved:
        """Return the engine of a name, and note which model it is, for metrics and traces.

        Raises UnknownModel and EngineNotReady.
        """
        resolved = self.models.resolve(name, capability)
        note_model(self.request.scope, resolved.engine)
        return resolved

    def resolve_embedder(
        self, body: TaskRequest, inputs: Sequence[object], capability: Capability = "embed"
    ) -> Resolved:
        """Resolve the engine for inputs that may be token ids.

        Also raises RequestValidationError for token ids if the model is served without them.
        """
        resolved = self.resolve(body, capability, inputs)
        check_token_ids_allowed(inputs, resolved.engine.engine_args.token_ids, name=body.input_field)
        return resolved

    def check_num_inputs(self, body: TaskRequest, inputs: Sequence[object]) -> None:
        """Raise a 422 for more inputs than one request may have."""
        check_num_items(inputs, limit=self.max_client_batch_size, name=body.input_field, remedy=_REMEDY)
