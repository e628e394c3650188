"""TensorBoard as a receiver of a job's curves: FLARE's, with what no event of FLARE's can carry."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from nvflare.apis.fl_context import FLContext
from nvflare.app_opt.tracking.tb.tb_event_writer import TensorBoardEventWriter
from nvflare.app_opt.tracking.tb.tb_receiver import TBAnalyticsReceiver
from pydantic import JsonValue
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams.summary_v2 import Discrete, HParam, Metric, hparams_config_pb, hparams_pb

from pt_peft.experiment.experiment import Experiment
from pt_peft_flare.flare_internals import TENSORBOARD_WRITERS
from pt_peft_flare.run_context import read_experiment, run_dir
from pt_peft_flare.run_record import FILE_NAME
from pt_peft_flare.tracking import GLOBAL

LAYOUT = {
    "Validation": {
        "balanced accuracy: sites, their mean, all images": ("val/balanced_accuracy", "val_pooled/balanced_accuracy"),
        "AUROC": ("val/auroc",),
        "loss": ("val/loss",),
    },
    "Training": {"loss": ("train/loss",), "share of the aggregate": ("aggregation/share",)},
    "Cost": {
        "seconds of a round": ("time/round_s",),
        "bytes that a site sends": ("bytes/out",),
        "epsilon": ("privacy/epsilon", "privacy/client_epsilon"),
    },
}
"""Charts of the tab *Custom Scalars* by section, each with all runs: their titles and tags."""
OUTCOME = (
    "test/balanced_accuracy",
    "test_pooled/balanced_accuracy",
    "test/auroc",
    "test/loss",
    "val/balanced_accuracy",
    "privacy/epsilon",
)
"""Scalars of `GLOBAL` whose last value is shown beside an experiment's fields."""
NOT_COMPARED = {
    "name": True,
    "backbone": {"kwargs", "sha256", "mean", "std", "allow_missing", "allow_unused"},
    "data": {"classes"},
    "federation": {"round_timeout_s", "site_timeout_s", "silence_s", "sites", "max_images", "code"},
}
"""Fields of an experiment by which nobody sorts runs."""
FIRST = ("method.name", "training.learning_rate", "federation.rounds", "partition.kind", "head.finish", "seed")
"""The columns that stand before all others."""


class TensorBoardReceiver(TBAnalyticsReceiver):
    """Adds to `GLOBAL` the experiment, as text and as hyperparameters beside the outcome, and a layout of charts.

    Takes the same arguments as FLARE's.
    """

    def initialize(self, fl_ctx: FLContext) -> None:
        """Begins the run of the federation as a whole."""
        super().initialize(fl_ctx)
        if not TENSORBOARD_WRITERS.usable():
            return
        experiment = read_experiment(fl_ctx)
        writer = TensorBoardEventWriter(log_dir=str(Path(self.root_log_dir) / GLOBAL))
        self.writers_table[GLOBAL] = writer
        writer.add_text("experiment", f"```json\n{experiment.to_json()}```", 0)
        for summary in (*_hyperparameters(experiment), _layout()):
            _add(writer, summary)

    def finalize(self, fl_ctx: FLContext) -> None:
        """Says how the job has ended, and closes the files."""
        if GLOBAL in self.writers_table and TENSORBOARD_WRITERS.usable():
            _add(self.writers_table[GLOBAL], _end(run_dir(fl_ctx) / FILE_NAME))
        super().finalize(fl_ctx)


def _add(writer: TensorBoardEventWriter, summary: Summary) -> None:
    writer.writer.add_event(Event(wall_time=time.time(), summary=summary))


def _layout() -> Summary:
    """`LAYOUT` as the plugin reads it. The plugin's own function needs TensorFlow."""
    layout = layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title=section,
                chart=[
                    layout_pb2.Chart(
                        title=title, multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$" for tag in tags])
                    )
                    for title, tags in charts.items()
                ],
            )
            for section, charts in LAYOUT.items()
        ]
    )
    tensor = TensorProto(dtype=DT_STRING, string_val=[layout.SerializeToString()], tensor_shape=TensorShapeProto())
    metadata = layout_metadata.create_summary_metadata()
    return Summary(value=[Summary.Value(tag=layout_metadata.CONFIG_SUMMARY_TAG, metadata=metadata, tensor=tensor)])


def _hyperparameters(experiment: Experiment) -> tuple[Summary, Summary]:
    """Which columns the table has, and the values of this run."""
    found = dict(_leaves("", experiment.model_dump(mode="json", exclude=NOT_COMPARED)))
    values = {name: found[name] for name in FIRST} | found
    columns = [HParam(name, Discrete([value])) for name, value in values.items()]
    return hparams_config_pb(columns, [Metric(tag) for tag in OUTCOME]), hparams_pb(values)


def _leaves(path: str, value: JsonValue) -> Iterator[tuple[str, bool | float | str]]:
    """Values by their field's path such as ``training.batch_size``; lists as JSON, and none that are null."""
    match value:
        case dict():
            for name, one in value.items():
                yield from _leaves(f"{path}.{name}".lstrip("."), one)
        case list():
            yield path, json.dumps(value)
        case None:
            pass
        case _:
            yield path, value


def _end(record: Path) -> Summary:
    finished = record.exists() and json.loads(record.read_bytes())["status"] == "finished"
    end = plugin_data_pb2.SessionEndInfo(
        status=api_pb2.STATUS_SUCCESS if finished else api_pb2.STATUS_FAILURE, end_time_secs=time.time()
    )
    metadata = hparams_metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
    tag = hparams_metadata.SESSION_END_INFO_TAG
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=hparams_metadata.NULL_TENSOR)])
