from __future__ import annotations

import asyncio
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from infinity_emb.backends import load_trial
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.errors import StartupError
from infinity_emb.server.app import build_app
from infinity_emb.server.schemas.admin import AdminModelList, UnloadedModel
from infinity_emb.server.schemas.errors import ErrorResponse, ValidationErrorResponse
from infinity_emb.server.schemas.models import ModelEntry
from tests.support.tiny_server import build_debug_app, client_of, debug_args, embed

pytestmark = pytest.mark.anyio

KEY, ADMIN = "key of a client", "key of an administrator"
AS_ADMIN = {"authorization": f"Bearer {ADMIN}"}
MODELS = "/admin/models"
OTHER = {"model_id": "other", "engine": "debugengine"}


def admin_app(*args: Any, **config: Any) -> Any:
    return build_debug_app(*args, admin_key=ADMIN, **config)


async def names_served(client: httpx.AsyncClient) -> list[str]:
    return [entry["id"] for entry in (await client.get("/models")).json()["data"]]


def device_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("infinity-replica")}


def num_ended(threads: set[threading.Thread]) -> int:
    """Of threads, one of which at most still runs on; the last lines of one that ends take their time."""
    for _ in range(1000):
        if sum(thread.is_alive() for thread in threads) <= 1:
            break
        time.sleep(0.01)
    return sum(not thread.is_alive() for thread in threads)


# Who may


ADMIN_REQUESTS = [
    ("GET", MODELS),
    ("POST", MODELS),
    ("DELETE", f"{MODELS}/debug"),
    ("POST", f"{MODELS}/debug/reload"),
]


@pytest.mark.parametrize(("method", "path"), ADMIN_REQUESTS)
async def test_without_an_admin_key_there_are_no_such_routes(method: str, path: str) -> None:
    async with client_of(build_debug_app()) as client:
        assert (await client.request(method, path)).status_code == 404
    async with client_of(build_debug_app(api_key=KEY)) as client:
        assert (await client.request(method, path)).status_code == 401
        answer = await client.request(method, path, headers={"authorization": KEY})
        assert answer.status_code == 404


@pytest.mark.parametrize("config", [{}, {"api_key": KEY}])
@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize("root", ["", "/proxy", "/ad", "/v1"])
async def test_nothing_but_the_admin_key_opens_them(config: dict[str, str], prefix: str, root: str) -> None:
    app = admin_app(url_prefix=prefix, proxy_root_path=root, **config)
    async with client_of(app) as client:
        for headers in ({}, {"authorization": KEY}, {"authorization": "Bearer wrong"}):
            for method, path in ADMIN_REQUESTS:
                answer = await client.request(method, prefix + path, headers=headers)
                assert answer.status_code in (401, 404), (method, path)
                answer = await client.request(method, root + prefix + path, headers=headers)
                assert answer.status_code == 401
                assert "the admin key" in answer.json()["message"]
        assert [engine.engine_args.served_model_name for engine in app.engine_array] == ["debug"]


async def test_the_admin_key_opens_nothing_else() -> None:
    async with client_of(admin_app(api_key=KEY), headers=AS_ADMIN) as client:
        assert (await client.get(MODELS)).status_code == 200
        assert (await client.get("/models")).status_code == 401
        assert (await client.get("/administration")).status_code == 401
    async with client_of(admin_app()) as client:
        assert (await client.get("/models")).status_code == 200


def test_an_admin_key_that_clients_have_is_refused() -> None:
    with pytest.raises(StartupError, match="--admin-key must differ from every --api-key") as caught:
        ServerConfig(api_key=("a", "same"), admin_key="same")
    assert "same" not in str(caught.value)
    assert ADMIN not in repr(ServerConfig(admin_key=ADMIN))


# Loading


async def test_a_model_is_loaded_and_served_with_its_options() -> None:
    async with client_of(admin_app(), headers=AS_ADMIN) as client:
        answer = await client.post(
            MODELS,
            json={
                "model_id": "other?kind=embedder",
                "served_model_name": "mine,alias",
                "engine": "debugengine",
                "batch_size": 7,
                "embedding_dtype": "float16",
                "device_id": [0, 1],
            },
        )
        assert answer.status_code == 200
        entry = TypeAdapter(ModelEntry).validate_python(answer.json())
        assert (entry.id, entry.aliases, entry.is_loaded) == ("mine", ["alias"], True)
        assert (entry.stats.batch_size, entry.embedding_dtype) == (7, "float16")
        assert (await embed(client, model="alias")).json()["model"] == "mine"
        assert await names_served(client) == ["debug", "mine"]
        assert (await client.get("/ready")).status_code == 200
        assert 'infinity_items_total{model="mine"} 1.0' in (await client.get("/metrics")).text


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("dtype", "float31", "must be one of"),
        ("dtype", 3, "must be one of"),
        ("batch_size", 0, "must be at least 1, got 0"),
        ("batch_size", 1.5, "must be an integer"),
        ("batch_size", [1], "must be an integer"),
        ("revision", 5, "must be text"),
        ("revision", {}, "must be text"),
        ("device_id", [-1], "negative"),
        ("device_id", {"a": "b"}, "must be a list of integers"),
        ("device_id", [0] * 5000, "names more than 64 devices"),
        ("threads", 10**9, "must be at most 1024"),
        ("tokenizer_threads", 10**6, "must be at most 1024"),
        ("model_warmup", "maybe", "must be true or false"),
        ("no_such_option", 1, "unknown option; the options are"),
        ("api_key", "x", "unknown option"),
        ("model_name_or_path", "x", "unknown option"),
        ("modle_kind", "x", "unknown option; did you mean 'model_kind'?"),
        ("model_id", 3, "valid string"),
        ("model_id", "", "at least 1 character"),
        ("served_model_name", "n" * 513, "the limit is 512"),
        ("served_model_name", "name," + "n" * 513, "the limit is 512"),
        ("trust_remote_code", True, "started without --trust-remote-code"),
    ],
)
async def test_a_wrong_option_is_a_422_that_names_it(option: str, value: Any, complaint: str) -> None:
    async with client_of(admin_app(), headers=AS_ADMIN) as client:
        answer = await client.post(MODELS, json={**OTHER, option: value})
        assert answer.status_code == 422, answer.text
        error = TypeAdapter(ValidationErrorResponse).validate_python(answer.json())
        assert error.error.param == option
        assert complaint in error.error.message
        assert await names_served(client) == ["debug"]


async def test_a_model_may_bring_code_only_where_the_server_was_started_so() -> None:
    for is_trusted, status in ((True, 200), (False, 422)):
        app = admin_app(debug_args(trust_remote_code=is_trusted))
        async with client_of(app, headers=AS_ADMIN) as client:
            response = await client.post(MODELS, json={**OTHER, "trust_remote_code": True})
            assert response.status_code == status


async def test_a_taken_name_is_a_409_before_anything_is_loaded() -> None:
    app = admin_app(debug_args("first", served_model_aliases=("alias",)))
    async with client_of(app, headers=AS_ADMIN) as client:
        for name in ("first", "alias", "new,alias"):
            answer = await client.post(
                MODELS, json={**OTHER, "model_id": "debug?load_fails=x", "served_model_name": name}
            )
            assert answer.status_code == 409
            assert "is served as" in answer.json()["message"]
        assert len(app.engine_array) == 1


async def test_a_second_load_of_a_name_meanwhile_is_a_409_and_others_are_served() -> None:
    slow = {**OTHER, "model_id": "slow?load_delay_s=0.5", "served_model_name": "slow"}
    async with client_of(admin_app(), headers=AS_ADMIN) as client:
        loading = asyncio.create_task(client.post(MODELS, json=slow))
        await asyncio.sleep(0.05)
        listed = TypeAdapter(AdminModelList).validate_python((await client.get(MODELS)).json())
        assert (listed.changing, [each.id for each in listed.data]) == (["slow"], ["debug"])
        again = await client.post(MODELS, json=slow)
        assert again.status_code == 409
        assert "is being loaded" in again.json()["message"]
        assert (await embed(client, model="debug")).status_code == 200
        assert not loading.done()
        assert (await loading).status_code == 200
        assert (await client.get(MODELS)).json()["changing"] == []
        assert (await embed(client, model="slow")).status_code == 200


@pytest.mark.parametrize(("reason", "status"), [("memory", 507), ("broken weights", 400)])
async def test_a_model_that_cannot_be_loaded_is_an_error_and_the_rest_goes_on(
    reason: str, status: int, tmp_path: Path
) -> None:
    fault = tmp_path / "fault"
    fault.write_text(reason)
    wanted = {**OTHER, "model_id": f"other?load_fails={fault}", "served_model_name": "other"}
    async with client_of(admin_app(), headers=AS_ADMIN) as client:
        answer = await client.post(MODELS, json=wanted)
        assert answer.status_code == status
        error = TypeAdapter(ErrorResponse).validate_python(answer.json())
        assert reason in error.error.message
        assert await names_served(client) == ["debug"]
        assert (await embed(client)).status_code == 200
        fault.unlink()
        assert (await client.post(MODELS, json=wanted)).status_code == 200


async def test_a_model_that_cannot_be_started_is_not_served_either(tmp_path: Path) -> None:
    before = device_threads()
    async with client_of(admin_app(), headers=AS_ADMIN) as client:
        answer = await client.post(
            MODELS,
            json={**OTHER, "embedding_dtype": "int8", "calibration_file": str(tmp_path / "missing")},
        )
        assert answer.status_code == 400
        assert await names_served(client) == ["debug"]
        num_ended(device_threads() - before)
        assert len(device_threads() - before) == 1


async def test_the_death_of_a_loaded_model_ends_the_process_as_that_of_the_first_does() -> None:
    dead: list[str] = []
    app = admin_app()
    async with client_of(app, headers=AS_ADMIN) as client:
        app.engine_array.call_on_death(dead.append)
        await client.post(MODELS, json=OTHER)
        app.engine_array["other"].host.on_death()
        app.engine_array["debug"].host.on_death()
        gone = app.engine_array["other"]
        await client.delete(f"{MODELS}/other")
        gone.host.on_death()
    assert dead == ["other", "debug"]


# Unloading and loading anew


async def test_an_unloaded_model_is_gone_with_its_threads_and_can_be_loaded_again() -> None:
    before = device_threads()
    app = admin_app(debug_args("first"), debug_args("second", served_model_aliases=("two",)))
    async with client_of(app, headers=AS_ADMIN) as client:
        threads = device_threads() - before
        assert len(threads) == 2
        answer = await client.delete(f"{MODELS}/two")
        assert answer.status_code == 200
        assert TypeAdapter(UnloadedModel).validate_python(answer.json()).id == "second"
        assert num_ended(threads) == 1
        assert await names_served(client) == ["first"]
        assert (await embed(client, model="second")).json()["model"] == "first"
        assert (await embed(client)).json()["model"] == "first"
        assert 'model="second"' not in (await client.get("/metrics")).text
        assert (await client.delete(f"{MODELS}/second")).status_code == 404
        answer = await client.post(MODELS, json={**OTHER, "served_model_name": "second,two"})
        assert answer.status_code == 200
        assert (await embed(client, model="two")).status_code == 200


async def test_unloading_finishes_what_was_accepted_and_takes_nothing_more() -> None:
    app = admin_app(debug_args("debug?delay_s=0.1", batch_size=1))
    async with client_of(app, headers=AS_ADMIN) as client:
        waiting = [asyncio.create_task(embed(client, ["a", "bb"])) for _ in range(3)]
        await asyncio.sleep(0.05)
        unloading = asyncio.create_task(client.delete(f"{MODELS}/debug"))
        await asyncio.sleep(0.05)
        assert (await client.delete(f"{MODELS}/debug")).status_code == 404
        assert (await client.post(MODELS, json={**OTHER, "model_id": "debug"})).status_code == 409
        assert (await embed(client, model="debug")).status_code == 404
        assert [(await each).status_code for each in waiting] == [200] * 3
        assert (await unloading).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        assert (await client.get("/models")).json()["data"] == []
        assert (await embed(client)).status_code == 400


async def test_what_is_not_finished_by_the_deadline_of_unloading_fails() -> None:
    app = admin_app(debug_args("debug?delay_s=0.3", batch_size=1), shutdown_timeout_s=0)
    async with client_of(app, headers=AS_ADMIN) as client:
        waiting = [asyncio.create_task(embed(client, "a" * n)) for n in range(1, 5)]
        await asyncio.sleep(0.1)
        assert (await client.delete(f"{MODELS}/debug")).status_code == 200
        assert sorted([(await each).status_code for each in waiting]) == [200, 503, 503, 503]


async def test_requests_wait_while_a_model_is_loaded_anew_and_none_fails() -> None:
    app = admin_app(debug_args("debug?delay_s=0.01&load_delay_s=0.1"))
    async with client_of(app, headers=AS_ADMIN) as client:
        engine = app.engine_array["debug"]
        first = engine.slot.model
        statuses: list[int] = []

        async def ask() -> None:
            while not reloading.done():
                statuses.append((await embed(client)).status_code)

        reloading = asyncio.create_task(client.post(f"{MODELS}/debug/reload"))
        await asyncio.gather(*(ask() for _ in range(4)))
        assert (await reloading).status_code == 200
        assert set(statuses) == {200}
        assert engine.slot.model is not first
        assert engine.status().worker.num_items == len(statuses)


async def test_a_model_that_cannot_be_loaded_anew_is_tried_again_by_the_next_request(tmp_path: Path) -> None:
    fault = tmp_path / "fault"
    app = admin_app(debug_args(f"debug?load_fails={fault}", served_model_name="debug"))
    async with client_of(app, headers=AS_ADMIN) as client:
        fault.write_text("memory")
        assert (await client.post(f"{MODELS}/debug/reload")).status_code == 507
        fault.write_text("broken weights")
        assert (await client.post(f"{MODELS}/debug/reload")).status_code == 400
        entry = (await client.get("/models/debug")).json()
        assert (entry["is_loaded"], entry["max_tokens"]) == (False, 8192)
        failed = await asyncio.gather(*(embed(client) for _ in range(5)))
        assert {each.status_code for each in failed} == {503}
        assert "broken weights" in failed[0].json()["message"]
        assert failed[0].headers["retry-after"] == "1"
        fault.unlink()
        assert (await embed(client)).status_code == 200
        assert (await client.get("/models/debug")).json()["is_loaded"] is True


async def test_unknown_models_are_404() -> None:
    async with client_of(admin_app(), headers=AS_ADMIN) as client:
        assert (await client.delete(f"{MODELS}/nobody")).status_code == 404
        assert (await client.post(f"{MODELS}/nobody/reload")).status_code == 404
        assert (await client.delete(f"{MODELS}/")).status_code == 405


async def test_a_name_with_slashes_is_found() -> None:
    async with client_of(admin_app(debug_args("org/model")), headers=AS_ADMIN) as client:
        assert (await client.post(f"{MODELS}/org/model/reload")).json()["id"] == "org/model"
        assert (await client.delete(f"{MODELS}/org/model")).json()["id"] == "org/model"


async def test_a_server_that_stops_ends_models_that_were_loaded_meanwhile() -> None:
    app = admin_app()
    async with client_of(app, headers=AS_ADMIN) as client:
        await client.post(MODELS, json=OTHER)
        engine = app.engine_array["other"]
        assert engine.is_running
    assert not engine.is_running


# The document


def document(**config: Any) -> dict[str, Any]:
    app = build_debug_app(**config)
    assert isinstance(app.openapi()["paths"], dict)
    return app.openapi()


def test_the_routes_are_documented_with_every_option_where_they_exist() -> None:
    assert not [path for path in document(api_key=KEY)["paths"] if "admin" in path]
    full = document(admin_key=ADMIN)
    paths = {path: sorted(methods) for path, methods in full["paths"].items() if "admin" in path}
    assert paths == {
        MODELS: ["get", "post"],
        f"{MODELS}/{{model_id}}": ["delete"],
        f"{MODELS}/{{model_id}}/reload": ["post"],
    }
    for path, methods in paths.items():
        for method in methods:
            operation = full["paths"][path][method]
            assert operation["security"]
            assert {"200", "401"} <= operation["responses"].keys()
    assert not full["paths"]["/embeddings"]["post"].get("security")
    schema = full["components"]["schemas"]["LoadRequest"]
    assert {"model_id", "served_model_name", "idle_unload_s", "dtype"} <= schema["properties"].keys()
    assert schema["required"] == ["model_id"]
    assert schema["properties"]["batch_size"]["minimum"] == 1
    assert "bfloat16" in schema["properties"]["dtype"]["enum"]


async def test_the_documented_examples_fit_and_load_with_the_fake_engine() -> None:
    examples = document(admin_key=ADMIN)["paths"][MODELS]["post"]["requestBody"]["content"]
    async with client_of(admin_app(), headers=AS_ADMIN) as client:
        for example in examples["application/json"]["examples"].values():
            body = {**example["value"], "engine": "debugengine"}
            answer = await client.post(MODELS, json=body)
            assert answer.status_code == 200, answer.text


async def test_the_array_can_be_made_by_the_app() -> None:
    """As the Python API does."""
    app = build_app(lambda: AsyncEngineArray.from_args([debug_args()]), ServerConfig(admin_key=ADMIN))
    async with client_of(app, headers=AS_ADMIN) as client:
        assert (await client.post(MODELS, json=OTHER)).status_code == 200


async def test_a_load_that_hangs_in_native_code_is_killed_and_others_go_on(tmp_path: Path) -> None:
    endless = {**faulty_model(tmp_path, "hang"), "load_timeout_s": 2}
    async with client_of(admin_app(debug_args("debug"))) as client:
        stuck = asyncio.create_task(client.post(MODELS, json=endless, headers=AS_ADMIN))
        response = await client.post(MODELS, json=OTHER, headers=AS_ADMIN)
        assert response.status_code == 200
        refused = await stuck
        assert refused.status_code == 400
        assert "--load-timeout-s" in refused.text
        assert await names_served(client) == ["debug", "other"]


async def test_a_model_that_crashes_or_takes_all_memory_is_refused_and_the_server_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(load_trial, "free_memory_bytes", lambda: 2**29)
    async with client_of(admin_app(debug_args("debug"))) as client:
        faults = {"abort": 400, "all memory": 507}
        if sys.platform != "linux":  # other systems bound no memory
            del faults["all memory"]
        for reason, status in faults.items():
            model = faulty_model(tmp_path, reason)
            response = await client.post(MODELS, json=model, headers=AS_ADMIN)
            assert response.status_code == status, response.text
            assert (await embed(client)).status_code == 200


def faulty_model(folder: Path, reason: str) -> dict[str, Any]:
    (folder / "fault").write_text(reason)
    return {"model_id": f"bad?load_fails={folder / 'fault'}", "engine": "debugengine"}
