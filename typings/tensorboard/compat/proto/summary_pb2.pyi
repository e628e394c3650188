from collections.abc import Iterable

from tensorboard.compat.proto.tensor_pb2 import TensorProto

class SummaryMetadata: ...

class Summary:
    class Value:
        def __init__(self, *, tag: str, metadata: SummaryMetadata, tensor: TensorProto) -> None: ...

    def __init__(self, *, value: Iterable[Value]) -> None: ...
