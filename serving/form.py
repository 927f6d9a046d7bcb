"""The page's answers to a browser: shown, and filled in. Change here to let its form do more."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from serving import page
from serving.problems import Answer, Problem, problem_of
from serving.protocols import JSON, Call
from serving.rows import RowError
from serving.service import Service

_HTML = b"text/html; charset=utf-8"
_HEADERS = ((b"content-security-policy", page.CSP.encode()),)


class Form:
    """The page of a service; made in a thread, since nobody else should wait for it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def page(self, status: int = 200, **known: Any) -> Answer:
        """The page, as `serving.page.page` has it."""
        release = self._service.live.release
        card = page.read_card(release.folder, release.hash)
        asks_key = not self._service.settings.open
        return Answer(status, page.page(release, asks_key=asks_key, card=card, **known), _HTML, _HEADERS)

    def figures(self) -> Answer:
        """The live figures."""
        release = self._service.live.release
        figures = page.Figures.read(self._service.metrics.registry, release.reference)
        return Answer(200, page.figures_page(figures, release), _HTML, _HEADERS)

    def card(self) -> Answer:
        """The model card, where there is one."""
        release = self._service.live.release
        card = page.read_card(release.folder, release.hash)
        if card is None:
            raise Problem(404, "there is no card of this model")
        return Answer(200, page.card_page(card, release), _HTML, _HEADERS)

    async def submit(self, call: Call) -> tuple[Answer, int]:
        """Score the row that was filled in, as `/predict` does."""
        filled = page.form_fields(call.body)
        try:
            scored, rows = await self._scored(call, filled)
        except (Problem, RowError) as error:
            problem = problem_of(error)
            self._service.metrics.refused(problem.reason)
            wrong = {"errors": problem.errors, "detail": problem.detail}
            return await asyncio.to_thread(self.page, problem.status, filled=filled, **wrong), 0
        answer = msgspec.json.decode(scored.body)
        return await asyncio.to_thread(self.page, filled=filled, answer=answer), rows

    async def _scored(self, call: Call, filled: Mapping[str, str]) -> tuple[Answer, int]:
        key = filled.get("key", "").encode("ascii", "replace")
        call.holder = self._service.access.check({b"authorization": b"Bearer " + key} if key else {}, "predict")
        record = page.record(self._service.live.release.inputs, filled)
        asked = Call(call.id, {b"content-type": JSON}, msgspec.json.encode({"rows": [record]}))
        return await self._service.handler("predict")(asked)
