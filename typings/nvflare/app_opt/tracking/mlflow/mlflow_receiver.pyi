from typing import Any

from nvflare.apis.analytix import AnalyticsData
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

class MLflowReceiver(FLComponent):
    artifact_location: str
    kw_args: dict[str, Any]
    buffer: dict[str, Any]
    def save(self, fl_ctx: FLContext, shareable: Shareable, record_origin: str) -> None: ...
    def buffer_data(self, data: AnalyticsData, record_origin: str) -> None: ...
    def _get_artifact_location(self, relative_path: str, fl_ctx: FLContext) -> str: ...
    def _get_tags(self, tag_key: str, kwargs: dict[str, Any]) -> dict[str, Any]: ...
    def _mlflow_setup(
        self,
        art_full_path: str,
        experiment_name: str,
        experiment_tags: dict[str, Any],
        site_names: list[str],
        fl_ctx: FLContext,
    ) -> None: ...
    def _init_buffer(self, site_names: list[str]) -> None: ...
