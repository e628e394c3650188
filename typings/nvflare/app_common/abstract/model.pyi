from typing import Any

from nvflare.apis.dxo import DXO

class ModelLearnableKey:
    WEIGHTS: str
    META: str

class ModelLearnable(dict[str, Any]): ...

def make_model_learnable(weights: object, meta_props: dict[str, Any]) -> ModelLearnable: ...
def model_learnable_to_dxo(ml: ModelLearnable) -> DXO: ...
