"""The path of one request through the package, traced in this process.

Sends `POST /v1/embeddings` to the ASGI app with the default model and records which functions lead to the
tokenizer, to the queue and to the network's forward pass. What uvicorn does before is left out.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from scripts.asgi_client import AsgiApp, Lifespan, post_json

PACKAGE = "infinity_emb"
REQUEST = {"input": ["a", "b"]}
ENGINE_OPTIONS: Mapping[str, Any] = {"device": "cpu", "model_warmup": False}


@dataclass(frozen=True, slots=True)
class Marker:
    """A moment at which the call stack is recorded: a function of these names in a module that matches.

    The module of a function written in C is what it says itself, or that of its object's class.
    """

    module: str
    names: frozenset[str]

    def matches(self, module: str, name: str) -> bool:
        return name in self.names and re.fullmatch(self.module, module) is not None


# In the order of the path. A function of the package is on the main line when it is on the call stack at one
# of these moments. A marker that never fires is an error: rename it here with the code.
MARKERS = {
    "route": Marker(
        rf"{PACKAGE}\.server\.(.*\.)?embeddings(_route)?", frozenset({"embeddings", "create_embeddings"})
    ),
    # `tokenizers` is written in Rust, and its classes say that they are builtins.
    "tokenizer": Marker(r"(tokenizers|builtins)(\..*)?", frozenset({"encode_batch", "encode_batch_fast"})),
    "queued": Marker(rf"{PACKAGE}\.(batching|fairness|scheduling\..*)", frozenset({"add", "push"})),
    "batch chosen": Marker(rf"{PACKAGE}\.(batching|scheduling\..*)", frozenset({"take_batch"})),
    "forward": Marker(r"transformers\.models\..*", frozenset({"forward"})),
    "attention": Marker(r"torch(\..*)?", frozenset({"scaled_dot_product_attention"})),
}


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the package.

    file: relative to the folder of the package.
    owner: the class of the object that it was called on; None for a plain function.
    """

    file: str
    line: int
    name: str
    owner: str | None = field(compare=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.name}"


@dataclass(frozen=True, slots=True)
class RequestPath:
    """The main line in the order of the path, and every file in which the request called a function."""

    functions: Sequence[Function]
    crossings: Sequence[str]
    touched: Sequence[str]

    @property
    def files(self) -> list[str]:
        return list(dict.fromkeys(function.file for function in self.functions))


class MarkerMissing(Exception):
    """A marker never fired: the function that it names is called something else now."""


Stack = tuple[Function, ...]


class Tracer:
    """Records stacks of one package at markers, joined across asyncio tasks and thread pools.

    Threads that start inside `installed` are traced; nothing is recorded outside of `recording`.
    """

    def __init__(self, folder: Path, markers: Mapping[str, Marker] = MARKERS) -> None:
        self.stacks: dict[str, dict[Stack, None]] = {name: {} for name in markers}
        self.touched: set[str] = set()
        self._markers = markers
        self._marked_names = frozenset().union(*(each.names for each in self._markers.values()))
        self._folder = f"{folder.resolve()}/"
        self._is_recording = False
        self._created: weakref.WeakKeyDictionary[asyncio.Task[Any], Stack] = weakref.WeakKeyDictionary()
        self._submitted = threading.local()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Trace the threads that start inside the block."""
        before = threading.getprofile()
        threading.setprofile(self._on_event)
        try:
            yield
        finally:
            threading.setprofile(before)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record inside the block, on this thread and on those of `installed`. Call it in the event loop."""
        loop = asyncio.get_running_loop()
        submit = ThreadPoolExecutor.submit
        loop.set_task_factory(self._create_task)
        ThreadPoolExecutor.submit = self._wrap_submit(submit)  # type: ignore[method-assign]
        self._is_recording = True
        before = sys.getprofile()
        sys.setprofile(self._on_event)
        try:
            yield
        finally:
            sys.setprofile(before)
            self._is_recording = False
            ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]
            loop.set_task_factory(None)

    def _on_event(self, frame: FrameType, event: str, arg: Any) -> None:
        if not self._is_recording:
            return
        if event == "call":
            if frame.f_code.co_filename.startswith(self._folder):
                self.touched.add(frame.f_code.co_filename.removeprefix(self._folder))
            if frame.f_code.co_name in self._marked_names:
                self._mark(frame.f_globals.get("__name__", ""), frame.f_code.co_name, frame)
        elif event == "c_call" and (name := getattr(arg, "__name__", "")) in self._marked_names:
            owner = getattr(arg, "__self__", None)
            self._mark(getattr(arg, "__module__", None) or type(owner).__module__, name, frame)

    def _mark(self, module: str, name: str, frame: FrameType) -> None:
        for marker_name, marker in self._markers.items():
            if marker.matches(module, name):
                self.stacks[marker_name][self._whole_stack(frame)] = None

    def _whole_stack(self, frame: FrameType | None) -> Stack:
        """Return the functions that lead to `frame`, outermost first, across tasks and thread pools."""
        here: list[Function] = []
        while frame is not None:
            function = self._describe(frame)
            if function is not None:
                here.append(function)
            frame = frame.f_back
        return (*self._handed_over(), *reversed(here))

    def _handed_over(self) -> Stack:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no event loop runs on this thread
            task = None
        if task is not None:
            return self._created.get(task, ())
        return getattr(self._submitted, "stack", ())

    def _describe(self, frame: FrameType) -> Function | None:
        code = frame.f_code
        is_inside_another = code.co_name.startswith("<") and code.co_name != "<lambda>"
        if is_inside_another or not code.co_filename.startswith(self._folder):
            return None
        file = code.co_filename.removeprefix(self._folder)
        return Function(file, code.co_firstlineno, _qualified_name(code), _find_owner(frame))

    def _create_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        self._created[task] = self._whole_stack(sys._getframe())
        return task

    def _wrap_submit(self, submit: Callable[..., Any]) -> Callable[..., Any]:
        tracer = self

        def submit_with_stack(pool: ThreadPoolExecutor, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            stack = tracer._whole_stack(sys._getframe())

            def run(*args: Any, **kwargs: Any) -> Any:
                tracer._submitted.stack = stack
                try:
                    return function(*args, **kwargs)
                finally:
                    tracer._submitted.stack = ()

            return submit(pool, run, *args, **kwargs)

        return submit_with_stack


def trace_request(root: Path) -> RequestPath:
    """Trace one request after one warm-up request. Raises MarkerMissing, and RuntimeError where it fails.

    root: the checkout that is traced. The package must not have been imported from another one.
    """
    import infinity_emb

    folder = Path(infinity_emb.__file__).resolve().parent
    if folder.parent != root.resolve():
        raise RuntimeError(f"{PACKAGE} is imported from {folder.parent}, not from {root}; set PYTHONPATH")
    tracer = Tracer(folder)
    with tracer.installed():
        app = infinity_emb.create_server(engine_args_list=[infinity_emb.EngineArgs(**ENGINE_OPTIONS)])
        asyncio.run(_send_requests(app, tracer))
    return join_stacks(tracer.stacks, tracer.touched)


def join_stacks(stacks: Mapping[str, dict[Stack, None]], touched: Iterable[str]) -> RequestPath:
    """Return the union of the stacks in the order of the markers. Raises MarkerMissing."""
    missing = [name for name, found in stacks.items() if not found]
    if missing:
        raise MarkerMissing(
            f"no call matched the markers {missing}: change MARKERS in scripts/structure_path.py to the names"
            " that the code has now"
        )
    functions = dict.fromkeys(each for found in stacks.values() for stack in found for each in stack)
    return RequestPath(list(functions), list(_crossings(stacks)), sorted(touched))


def _crossings(stacks: Mapping[str, dict[Stack, None]]) -> Iterator[str]:
    """Yield the calls from one object to an object of another class, between the route and the forward pass.

    Plain functions in between are skipped. The hand-over from the queue to the worker thread is one.
    """
    (route, *_) = (stack[-1] for stack in stacks["route"])
    seen = {route}
    previous = _owner_or_file(route)
    for marker_name in ("tokenizer", "queued", "batch chosen", "forward"):
        for stack in stacks[marker_name]:
            is_from_route = route in stack
            caller = _owner_or_file(route) if is_from_route else previous
            for function in stack[stack.index(route) + 1 if is_from_route else 0 :]:
                if function.owner is None:
                    continue
                if function not in seen and function.owner != caller:
                    yield f"{caller} -> {function.owner} ({function})"
                seen.add(function)
                caller = function.owner
        if marker_name == "queued":
            previous = caller


def _owner_or_file(function: Function) -> str:
    return function.owner or function.file


def _qualified_name(code: CodeType) -> str:
    return getattr(code, "co_qualname", code.co_name)  # Python 3.10 has the plain name only


def _find_owner(frame: FrameType) -> str | None:
    """Return the class of `self`, also for a function that is defined inside a method."""
    names = (*frame.f_code.co_varnames[:1], *frame.f_code.co_freevars)
    if "self" in names:
        return type(frame.f_locals["self"]).__qualname__
    if "cls" in names:
        return str(frame.f_locals["cls"].__qualname__)
    return None


async def _send_requests(app: AsgiApp, tracer: Tracer) -> None:
    async with Lifespan(app):
        await _post(app)
        with tracer.recording():
            await asyncio.create_task(_post(app))


async def _post(app: AsgiApp) -> None:
    status, body = await post_json(app, "/v1/embeddings", REQUEST)
    if status != 200 or len(json.loads(body)["data"]) != len(REQUEST["input"]):
        raise RuntimeError(f"the request was answered with {status}: {body[:500]!r}")
