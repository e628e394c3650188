from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace

class AppDeployer:
    def deploy(
        self,
        workspace: Workspace,
        job_id: str,
        job_meta: dict[str, Any],
        app_name: str,
        app_data: bytes,
        fl_ctx: FLContext,
    ) -> str: ...
