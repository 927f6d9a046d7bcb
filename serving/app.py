"""The service put together: what is answered where. Change here to add a route."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from time import monotonic
from typing import Any, Generic, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from pipeline.scoring import Features
from serving import openapi
from serving.admission import CLIENT_LEFT, Admission, ClientLeft, Endpoint
from serving.edge import Edge
from serving.form import Form
from serving.problems import Answer, Problem
from serving.protocols import INFER, INFER_VERSION, Call
from serving.release import Release
from serving.rows import RowError
from serving.service import Service
from serving.settings import Settings, project
from serving.telemetry import Log, make_tracing

Made = TypeVar("Made")


def create_app(settings: Settings, features: Features, log: Log) -> Edge:
    """The ASGI application that serves the bundle of the settings; InputError says why it cannot."""
    service = Service(settings, features, log)
    admission = Admission(settings, service.access)
    release = service.live.release
    # This one replaces FastAPI's page of documentation, which loads its scripts from elsewhere.
    app: FastAPI = FastAPIOffline(
        title=release.name,
        version=project()["version"],
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # the edge does that, for every route
        lifespan=_looked_after(service),
    )

    @lru_cache(1)  # it takes as long as a hundred predictions, and whoever comes may ask for it
    def described(_bundle: str) -> dict[str, Any]:
        return openapi.describe(app, service)

    app.openapi = lambda: described(service.live.release.hash)  # type: ignore[method-assign]  # as FastAPI's manual has
    infer = Endpoint(INFER, "predict", service.handler("infer"))
    endpoints = {
        "/predict": Endpoint("/predict", "predict", service.handler("predict")),
        "/invocations": Endpoint("/invocations", "predict", service.handler("invocations")),
        "/": Endpoint("/", None, Form(service).submit, max_bytes=65_536),
        "/feedback": Endpoint("/feedback", "feedback", service.feedback),
        INFER: infer,
        INFER_VERSION: Endpoint(INFER_VERSION, "predict", service.handler("infer", canary=False)),
        "/admin/reload": Endpoint("/admin/reload", "admin", service.reload),
        "/admin/kill": Endpoint("/admin/kill", "admin", service.kill),
        "/admin/revive": Endpoint("/admin/revive", "admin", service.revive),
    }
    for path, endpoint in endpoints.items():
        route = app.post(path, tags=[endpoint.scope or "page"], name=path, summary=endpoint.handle.__doc__)
        route(_answering(endpoint, admission, service))
    _add_page(app, service)
    _add_health(app, service)
    _add_v2(app, service)
    for kind in (HTTPException, Problem, RowError, Exception):
        app.add_exception_handler(kind, _refusal(service))
    lanes = {path.format(name=release.name): endpoints[path] for path in ("/predict", "/invocations", INFER)}
    tracing = make_tracing(os.environ, release.name)
    return Edge(app, lanes, service=service, admission=admission, tracing=tracing)


def _looked_after(service: Service) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(service.look_after())
        loop = asyncio.get_running_loop()
        reloads = set()

        def reload() -> None:
            reloads.add(loop.create_task(service.reload_by_signal()))  # held, or the loop forgets it

        loop.add_signal_handler(signal.SIGHUP, reload)
        yield
        looking.cancel()

    return lifespan


class Renewed(Generic[Made]):
    """What takes a while to make, made again only once it is so many seconds old."""

    def __init__(self, make: Callable[[], Made], seconds: float) -> None:
        self._make, self._seconds = make, seconds
        self._made: tuple[float, Made] | None = None

    async def get(self) -> Made:
        """What there is, or a new one."""
        if self._made is None or monotonic() - self._made[0] > self._seconds:
            self._made = monotonic(), await asyncio.to_thread(self._make)
        return self._made[1]


def _add_page(app: FastAPI, service: Service) -> None:
    form = Form(service)
    shown, renewed = Renewed(form.page, 1), Renewed(form.figures, 1)

    @app.get("/", tags=["page"], response_class=HTMLResponse)
    async def show() -> Response:
        """What the model is and how it does, with a form that scores a row."""
        return _response(await shown.get())

    @app.get("/figures", tags=["page"], response_class=HTMLResponse)
    async def figures() -> Response:
        """What the service does now."""
        return _response(await renewed.get())

    @app.get("/card", tags=["page"], response_class=HTMLResponse)
    async def card() -> Response:
        """The model card."""
        return _response(await asyncio.to_thread(form.card))


def _add_health(app: FastAPI, service: Service) -> None:
    async def live() -> Response:
        """Whether the process runs."""
        return JSONResponse({"live": True})

    async def ready() -> Response:
        """Whether requests are answered, and what an operator should know all the same."""
        return JSONResponse({"ready": True, "details": service.details()})

    # This service's own, V2's, and those of MLflow's server.
    answers = {"/health/live": live, "/health/ready": ready, "/v2/health/live": live, "/v2/health/ready": ready}
    for path, answer in {**answers, "/ping": ready, "/health": ready}.items():
        app.get(path, tags=["health"], name=path, summary=answer.__doc__)(answer)
        app.head(path, include_in_schema=False)(answer)

    @app.get("/version", tags=["model"], response_class=PlainTextResponse)
    async def version() -> Response:
        """The model's version."""
        return Response(service.live.release.version, media_type="text/plain")

    @app.get("/model", tags=["model"])
    async def model() -> Response:
        """What the model is: its contract, where it comes from, and what its inspection found."""
        release = service.live.release
        named = {"name": release.name, "version": release.version, "hash": release.hash}
        verdict = {"verdict": release.verdict, "inspected": release.inspected, "airworthy": release.airworthy}
        return JSONResponse({**named, **verdict, "contract": release.contract, "lineage": release.lineage})

    told = Renewed(lambda: generate_latest(service.metrics.registry), 0.1)

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(await told.get(), media_type=CONTENT_TYPE_LATEST)


def _add_v2(app: FastAPI, service: Service) -> None:
    @app.get("/v2", tags=["v2"])
    async def server() -> Response:
        """The server, as the Open Inference Protocol asks for it."""
        return JSONResponse({"name": app.title, "version": app.version, "extensions": ["binary_tensor_data"]})

    async def metadata(request: Request) -> Response:
        """The model's tensors."""
        release = _asked_release(request, service)
        platform = {"onnx": "onnxruntime_onnx"}.get(release.contract["runtime"], release.contract["runtime"])
        named = {"name": release.name, "versions": [release.version], "platform": platform}
        return JSONResponse({**named, **service.live.tensors})

    async def model_ready(request: Request) -> Response:
        """Whether this model answers."""
        release = _asked_release(request, service)
        return JSONResponse({"name": release.name, "ready": True})

    for path in (INFER, INFER_VERSION):
        app.get(path.removesuffix("/infer"), tags=["v2"])(metadata)
        app.get(path.removesuffix("infer") + "ready", tags=["v2"])(model_ready)


def _answering(endpoint: Endpoint, admission: Admission, service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        _asked_release(request, service)
        try:
            answered, _rows = await admission.answer(endpoint, _call(request), request.receive)
        except ClientLeft:
            return Response(status_code=CLIENT_LEFT)  # to nobody
        return _response(answered)

    return answer


def _refusal(service: Service) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def refuse(request: Request, error: Exception) -> Response:
        return _response(service.refuse(error, _call(request)))

    return refuse


def _call(request: Request) -> Call:
    """The call that the edge has begun, or one of its own where FastAPI is asked directly."""
    begun: Any = request.scope.get("call")
    return begun or Call("none", dict(request.scope["headers"]))


def _asked_release(request: Request, service: Service) -> Release:
    """The release that a path names, if it names one."""
    asked, release = request.path_params, service.live.release
    if asked.get("name", release.name) != release.name or asked.get("version", release.version) != release.version:
        raise Problem(404, f"expected the model {release.name}, version {release.version}")
    return release


def _response(answer: Answer) -> Response:
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, headers, answer.media_type.decode())
