from typing import Any

from nvflare.apis.fl_context import FLContext

class GPUResource:
    memory: float

class GPUResourceManager:
    num_gpu_key: str
    gpu_mem_key: str
    resources: dict[int, GPUResource]
    def __init__(
        self,
        num_of_gpus: int,
        mem_per_gpu_in_GiB: float,
        num_gpu_key: str = ...,
        gpu_mem_key: str = ...,
        expiration_period: int = ...,
        ignore_host: bool = ...,
    ) -> None: ...
    def check_resources(self, resource_requirement: dict[str, Any], fl_ctx: FLContext) -> tuple[bool, str]: ...
    def cancel_resources(self, resource_requirement: dict[str, Any], token: str, fl_ctx: FLContext) -> None: ...
    def allocate_resources(
        self, resource_requirement: dict[str, Any], token: str, fl_ctx: FLContext
    ) -> dict[int, float]: ...
    def free_resources(self, resources: dict[int, float], token: str, fl_ctx: FLContext) -> None: ...
    def _check_required_resource_available(self, resource_requirement: dict[str, Any]) -> bool: ...
    def _reserve_resource(self, resource_requirement: dict[str, Any]) -> dict[int, float]: ...
    def _deallocate(self, resources: dict[int, float]) -> None: ...
