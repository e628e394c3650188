from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

class Filter(FLComponent):
    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable: ...
