from typing import Any

from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

NULL_TENSOR: TensorProto
EXPERIMENT_TAG: str
SESSION_START_INFO_TAG: str
SESSION_END_INFO_TAG: str

def create_summary_metadata(hparams_plugin_data_pb: HParamsPluginData) -> SummaryMetadata: ...
def parse_experiment_plugin_data(content: bytes) -> Any: ...
def parse_session_start_info_plugin_data(content: bytes) -> Any: ...
def parse_session_end_info_plugin_data(content: bytes) -> Any: ...
