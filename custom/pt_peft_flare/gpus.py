"""Which GPUs the processes of FLARE see."""

import os
from typing import Any

from nvflare.apis.fl_context import FLContext

from pt_peft.environment import VISIBLE
from pt_peft.worker.place import ORDER
from pt_peft_flare.flare_internals import SITE_GPUS


def see_gpus_of_first_site(fl_ctx: FLContext) -> None:
    """Lets this process, a simulated server's, see the GPUs that ``nvflare simulator -gpu`` gives to the first site.

    FLARE tells it to the processes of sites alone. The server needs no GPU, but its worker host gets ready for what the
    server sees.
    """
    engine: Any = fl_ctx.get_engine()
    if not SITE_GPUS.usable() or not (groups := engine.args.gpu):
        return
    from nvflare.private.fed.utils.fed_utils import split_gpus

    os.environ.update({ORDER: "PCI_BUS_ID", VISIBLE: split_gpus(groups)[0]})
