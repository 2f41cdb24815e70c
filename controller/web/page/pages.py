"""All that the page's endpoints share: the screens, who looks at them, and pages about problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from starlette.types import Scope, Send

from controller.core.rollout import Rollout
from controller.web.access.identity import Way
from controller.web.access.reading import SIGN_IN, identity_of
from controller.web.admission import Admission
from controller.web.flags import FlagBoard
from controller.web.page.buttons import VisitorRights
from controller.web.page.files import Files
from controller.web.page.fleet import FleetScreen
from controller.web.page.incident_screen import IncidentScreen
from controller.web.page.inventory import FlagScreen
from controller.web.page.live import LivePages
from controller.web.page.plans import PlanScreen
from controller.web.page.rendering import Renderer, ScreenSection, Visitor, send_page
from controller.web.page.rollout import RolloutScreen

#: Characters of an address that a page repeats: whoever made the link chose them.
LONGEST_SHOWN: Final = 128


@dataclass(frozen=True, slots=True)
class Pages:
    """All that the page's endpoints share."""

    files: Files
    renderer: Renderer
    board: FlagBoard
    fleet: FleetScreen
    rollout: RolloutScreen
    plans: PlanScreen
    live: LivePages
    admission: Admission | None  # None: nobody can sign in
    flags: FlagScreen
    incidents: IncidentScreen | None  # None: nobody is notified

    async def show(
        self,
        scope: Scope,
        send: Send,
        title: str,
        sections: Sequence[ScreenSection],
        *,
        here: str = "",
        live: str | None = None,
        status: int = 200,
    ) -> None:
        """Answer with a page for whoever looks at it; `here` and `live` are as in `Renderer`."""
        visitor = self.visitor(scope)
        page = self.renderer.page(title, sections, live=live, here=here, visitor=visitor)
        await send_page(send, page, status)

    async def problem(self, send: Send, status: int, title: str, why: str, *cookies: bytes) -> None:
        """Answer with a page that says what is wrong."""
        sections = self.renderer.blocks("problem.html", {"title": title, "why": why})
        await send_page(send, self.renderer.page(title, sections), status, *cookies)

    def nowhere(self, scope: Scope, status: int, methods: str) -> bytes:
        """Return the page of an address that shows nothing; `methods` are those that it takes."""
        path = scope["path"][:LONGEST_SHOWN]
        title, why = "There is no such page", f"Nothing is shown at {path}."
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            title = "This address does not take that"
            why = f"{path} takes {methods}, and this was {scope['method']}."
        return self.renderer.page(
            title, self.renderer.blocks("problem.html", {"title": title, "why": why})
        )

    async def refuse(
        self, scope: Scope, send: Send, status: int, why: str, title: str = "You may not see this"
    ) -> None:
        """Answer somebody who may not do this with why, and with the way to sign in or out."""
        sections = self.renderer.blocks("problem.html", {"title": title, "why": f"{why}."})
        await self.show(scope, send, title, sections, status=status)

    def visitor(self, scope: Scope) -> Visitor | None:
        """Return who looks at a page, None where nobody can sign in with a browser."""
        who = identity_of(scope)
        if self.admission is None or (who is None and not self.admission.takes_browsers):
            return None
        return Visitor(
            name="" if who is None else who.name,
            form="" if who is None else self.admission.guardian.signer.form_token(who),
            can_sign_out=who is not None and who.way is Way.SESSION,
            sign_in=f"{SIGN_IN}?to={quote(scope['path'], safe='')}"
            if self.admission.provider is not None
            else "",
        )

    def role(self, scope: Scope, flag_key: str) -> VisitorRights | None:
        """Return what whoever looks at a page may do to a flag, None as for `visitor`."""
        who = identity_of(scope)
        if self.admission is None or (who is None and not self.admission.takes_browsers):
            return None
        return VisitorRights(who is not None, self.admission.commands.role(who, flag_key))

    async def found(self, scope: Scope, send: Send) -> Rollout | None:
        """Return the rollout that the address names; None once a page has said why not."""
        flag_key = scope["path_params"]["flag_key"]
        rollout = self.board.rollout(flag_key)
        if rollout is not None:
            return rollout
        why = self.board.why_nothing_known
        if why is not None:
            await self.problem(send, 503, "It is not known yet which rollouts there are", why)
        else:
            shown = flag_key[:LONGEST_SHOWN]
            why = f"rolloutctl start plan.yaml starts one. This address is for {shown}."
            await self.problem(send, 404, "This flag has no rollout", why)
        return None
