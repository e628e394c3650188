from typing import Any

class ModelLearnableKey:
    WEIGHTS: str
    META: str

class ModelLearnable(dict[str, Any]): ...

def make_model_learnable(weights: object, meta_props: dict[str, Any]) -> ModelLearnable: ...
