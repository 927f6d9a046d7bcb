"""The service put together: what is answered where. Change here to add a route."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from serving import openapi
from serving.edge import Bodies, Edge
from serving.problems import Answer, Problem
from serving.protocols import Call
from serving.release import Release
from serving.rows import RowError
from serving.service import Handler, Service
from serving.settings import Settings, project
from serving.telemetry import Log, Metrics, make_tracing

INFER, INFER_VERSION = "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"


def create_app(release: Release, settings: Settings, log: Log) -> Edge:
    """The ASGI application that serves a release."""
    service = Service(release, settings, Metrics(release, log), log)
    predict, infer, invoke = (service.handler(form) for form in service.forms)
    bodies = Bodies(settings)
    # This one replaces FastAPI's page of documentation, which loads its scripts from elsewhere.
    app: FastAPI = FastAPIOffline(
        title=release.name,
        version=project()["version"],
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # the edge does that, for every route
        description=f"Scores of the model `{release.name}`, version {release.version}, bundle `{release.hash}`.",
    )
    page = openapi.describe
    app.openapi = lambda: page(app, release)  # type: ignore[method-assign]
    for path, handle, described in (
        ("/predict", predict, openapi.predict(release)),
        ("/invocations", invoke, openapi.invocations(release)),
        (INFER, infer, openapi.infer(service.infer.metadata(), release)),
        (INFER_VERSION, infer, openapi.infer(service.infer.metadata(), release)),
    ):
        app.post(path, openapi_extra=described, tags=["scores"])(_scoring(handle, bodies, release))
    _add_health(app, service)
    _add_v2(app, service)
    for kind in (HTTPException, Problem, RowError, Exception):
        app.add_exception_handler(kind, _refusal(service))
    lanes = {
        "/predict": ("/predict", predict),
        "/invocations": ("/invocations", invoke),
        INFER.format(name=release.name): (INFER, infer),
        INFER_VERSION.format(name=release.name, version=release.version): (INFER_VERSION, infer),
    }
    return Edge(app, lanes, service=service, bodies=bodies, tracing=make_tracing(os.environ, release.name))


def _add_health(app: FastAPI, service: Service) -> None:
    release = service.release

    async def live() -> Response:
        """Whether the process runs."""
        return JSONResponse({"live": True})

    async def ready() -> Response:
        """Whether the model answers."""
        if not service.ready:
            raise Problem(503, "the model does not answer yet")
        return JSONResponse({"ready": True})

    # This service's own, V2's, and those of MLflow's server.
    answers = {"/health/live": live, "/health/ready": ready, "/v2/health/live": live, "/v2/health/ready": ready}
    for path, answer in {**answers, "/ping": ready, "/health": ready}.items():
        app.get(path, tags=["health"], name=path, summary=answer.__doc__)(answer)

    @app.get("/version", tags=["model"])
    async def version() -> Response:
        """The model's version."""
        return Response(release.version, media_type="text/plain")

    @app.get("/model", tags=["model"])
    async def model() -> Response:
        """What the model is: its contract, where it comes from, and what its inspection found."""
        named = {"name": release.name, "version": release.version, "hash": release.hash}
        verdict = {"verdict": release.verdict, "inspected": release.inspected, "airworthy": release.airworthy}
        return JSONResponse({**named, **verdict, "contract": release.contract, "lineage": release.lineage})

    @app.get("/metrics", tags=["health"])
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_v2(app: FastAPI, service: Service) -> None:
    release = service.release

    @app.get("/v2", tags=["v2"])
    async def server() -> Response:
        """The server, as the Open Inference Protocol asks for it."""
        return JSONResponse({"name": release.name, "version": app.version, "extensions": ["binary_tensor_data"]})

    async def metadata(request: Request) -> Response:
        """The model's tensors."""
        _check_model(request, release)
        platform = {"onnx": "onnxruntime_onnx"}.get(release.contract["runtime"], release.contract["runtime"])
        named = {"name": release.name, "versions": [release.version], "platform": platform}
        return JSONResponse({**named, **service.infer.metadata()})

    async def model_ready(request: Request) -> Response:
        """Whether this model answers."""
        _check_model(request, release)
        return JSONResponse({"name": release.name, "ready": service.ready})

    for path in (INFER, INFER_VERSION):
        app.get(path.removesuffix("/infer"), tags=["v2"])(metadata)
        app.get(path.removesuffix("infer") + "ready", tags=["v2"])(model_ready)


def _scoring(handle: Handler, bodies: Bodies, release: Release) -> Callable[[Request], Awaitable[Response]]:
    async def score(request: Request) -> Response:
        _check_model(request, release)
        call = _call(request)
        call.body = await bodies.read(call.headers, request.receive)
        answer, _rows = await handle(call)
        return _response(answer)

    return score


def _refusal(service: Service) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def refuse(request: Request, error: Exception) -> Response:
        return _response(service.refuse(error, _call(request)))

    return refuse


def _call(request: Request) -> Call:
    """The call that the edge has begun, or one of its own where FastAPI is asked directly."""
    begun: Any = request.scope.get("call")
    return begun or Call("none", dict(request.scope["headers"]))


def _check_model(request: Request, release: Release) -> None:
    asked = request.path_params
    if asked.get("name", release.name) != release.name or asked.get("version", release.version) != release.version:
        raise Problem(404, f"expected the model {release.name}, version {release.version}")


def _response(answer: Answer) -> Response:
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, headers, answer.media_type.decode())
