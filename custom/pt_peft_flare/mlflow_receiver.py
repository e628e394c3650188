"""MLflow as a receiver of a job's scalars; needs the package `mlflow` at the server."""

import contextlib
import re
from functools import cached_property

from nvflare.apis.analytix import AnalyticsData, TrackConst
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_opt.tracking.mlflow.mlflow_receiver import MLflowReceiver

from pt_peft_flare.flare_internals import MLFLOW_RUNS


class MlflowReceiver(MLflowReceiver):
    """Begins a run for each source of scalars: the federation as a whole (``global``), and sites that join later, too.

    FLARE's own has a run for each site that is there when the job starts. Takes the same arguments.
    """

    def save(self, fl_ctx: FLContext, shareable: Shareable, record_origin: str) -> None:
        """Hands a scalar of `record_origin` to MLflow."""
        if not self._begins_runs:
            with contextlib.suppress(KeyError):  # FLARE has no run for this source
                super().save(fl_ctx, shareable, record_origin)
            return
        if record_origin not in self.buffer:
            folder = self._get_artifact_location(self.artifact_location, fl_ctx)
            experiment: str = self.kw_args.get(TrackConst.EXPERIMENT_NAME, "FLARE FL Experiment")  # FLARE's default
            tags = self._get_tags(TrackConst.EXPERIMENT_TAGS, kwargs=self.kw_args)
            self._mlflow_setup(folder, experiment, tags, [record_origin], fl_ctx)
            self._init_buffer([record_origin])
        super().save(fl_ctx, shareable, record_origin)

    def buffer_data(self, data: AnalyticsData, record_origin: str) -> None:
        """Keeps a scalar under a name that MLflow takes; of one that it does not, it refuses all that come with it."""
        data.tag = re.sub(r"[^/\w.\- :]", "_", data.tag)
        super().buffer_data(data, record_origin)

    @cached_property
    def _begins_runs(self) -> bool:
        return MLFLOW_RUNS.usable()
