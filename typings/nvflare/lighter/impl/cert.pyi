from typing import Any

from cryptography.x509 import Certificate
from nvflare.lighter.spec import Builder

class CertBuilder(Builder):
    @staticmethod
    def _generate_cert(*args: Any, **kwargs: Any) -> Certificate: ...
