from nvflare.apis.dxo import DXO
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext

class ModelLocator(FLComponent):
    def get_model_names(self, fl_ctx: FLContext) -> list[str]: ...
    def locate_model(self, model_name: str, fl_ctx: FLContext) -> DXO: ...
