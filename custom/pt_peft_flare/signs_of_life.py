"""When the server last heard of each site, so that one that is silent is told apart from one that trains.

By FLARE a site's job process gives a sign of life every ten seconds, also while its worker trains. FLARE itself looks
at what the sites' parents say, and for half a minute of each task not even at that.
"""

import time

from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer

from pt_peft_flare.flare_internals import SIGNS_OF_LIFE

QUIET_S = 30.0
"""Three of FLARE's heartbeats: a site that was not heard of for as long is worth a word in ``status``."""
START_S = 300.0
"""How long a site that was never heard of may take to start: on a busy machine imports alone take minutes."""


class SignsOfLife:
    """Hears the sites of one job. Before `listen`, and in a FLARE that has changed, nobody counts as silent."""

    def __init__(self) -> None:
        self._listens = False
        self._began = time.monotonic()
        self._heard: dict[str, float] = {}

    def listen(self, communicator: WFCommServer) -> None:
        """Hears, from now on, what FLARE's `communicator` hears of sites.

        What parents say of dead sites is not passed on to it: it would end tasks, or the job, by a rule of its own.
        """
        if not SIGNS_OF_LIFE.usable():
            return
        self._listens = True
        self._began = time.monotonic()
        communicator.client_is_active = self._hear
        communicator.process_dead_client_report = _not_needed

    def silent_s(self, site: str) -> float:
        """Seconds since the last sign of life of a site, or since the job began; 0 if nothing is known."""
        return time.monotonic() - self._heard.get(site, self._began) if self._listens else 0.0

    def is_known(self, site: str) -> bool:
        """Whether a site was ever heard of."""
        return not self._listens or site in self._heard

    def is_lost(self, site: str, silence_s: float) -> bool:
        """Whether a site was not heard of for more than `silence_s`, or has not started within `START_S`."""
        return self.silent_s(site) > (silence_s if self.is_known(site) else START_S)

    def _hear(self, client_name: str, reason: str, fl_ctx: FLContext) -> None:
        self._heard[client_name] = time.monotonic()


def _not_needed(client_name: str, fl_ctx: FLContext) -> None:
    pass
