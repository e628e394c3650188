"""MLflow as a receiver of a job's scalars; needs the package `mlflow` at the server."""

from nvflare.apis.analytix import TrackConst
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_opt.tracking.mlflow.mlflow_receiver import MLflowReceiver


class MlflowReceiver(MLflowReceiver):
    """FLARE's, which has a run for each site that is there when the job starts; this one begins a run for whatever source
    comes later too: the federation as a whole (``global``), a site that joins. Takes the same arguments.
    """

    def save(self, fl_ctx: FLContext, shareable: Shareable, record_origin: str) -> None:
        if record_origin not in self.buffer:
            folder = self._get_artifact_location(self.artifact_location, fl_ctx)
            experiment = self.kw_args.get(TrackConst.EXPERIMENT_NAME, "FLARE FL Experiment")  # FLARE's default
            tags = self._get_tags(TrackConst.EXPERIMENT_TAGS, kwargs=self.kw_args)
            self._mlflow_setup(folder, experiment, tags, [record_origin], fl_ctx)
            self._init_buffer([record_origin])
        super().save(fl_ctx, shareable, record_origin)
