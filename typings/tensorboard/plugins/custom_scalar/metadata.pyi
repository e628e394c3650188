from tensorboard.compat.proto.summary_pb2 import SummaryMetadata

CONFIG_SUMMARY_TAG: str

def create_summary_metadata() -> SummaryMetadata: ...
