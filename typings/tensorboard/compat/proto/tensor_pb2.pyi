from collections.abc import Iterable

from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

class TensorProto:
    string_val: list[bytes]
    def __init__(self, *, dtype: int, string_val: Iterable[bytes], tensor_shape: TensorShapeProto) -> None: ...
