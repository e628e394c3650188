"""The section ``payload`` of `experiment.json`: how each payload is written. Imports no torch.

Each codec has a file; a new one joins a union below.

**Up**, a site sends by how much it has changed each tensor in the round, since changes are small and alike in size. The
server adds the changes to its own tensors. The site keeps what int8 and top-k lose of a change and adds it to the next
one (error feedback: Seide et al. 2014, doi:10.21437/Interspeech.2014-274; Karimireddy et al. 2019, arXiv:1901.09847).
Over all rounds the server then reads all that the site meant, but for the last round's loss.

**Down**, the server sends the tensors themselves, rounded to nearest. Its own tensors stay exact: sites' changes are
added to those, not to what was sent, so that no rounding error ever enters them and the server needs no error feedback.
The payload is a function of the tensors alone. So sites of one rank are sent the same, a site that missed rounds needs
to know nothing of them, and a tensor that a site holds from an earlier round equals what it would be sent now. The
final adapter holds the server's own tensors; sites evaluate what they are sent.

With float32 both ways nothing is lost, and sites send tensors, not changes.
"""

from typing import Annotated

from pydantic import Field

from pt_peft.exchange.codecs.bfloat16 import BFloat16
from pt_peft.exchange.codecs.float16 import Float16
from pt_peft.exchange.codecs.float32 import Float32
from pt_peft.exchange.codecs.int8 import Int8
from pt_peft.exchange.codecs.top_k import TopK
from pt_peft.schema import Strict


class Payload(Strict):
    """The codecs of the two payloads of a round."""

    up: Annotated[Float32 | Float16 | BFloat16 | Int8 | TopK, Field(discriminator="name")] = Float32()
    """Codec of the payload from a site to the server."""
    down: Annotated[Float32 | Float16 | BFloat16 | Int8, Field(discriminator="name")] = Float32()
    """Codec of the payload from the server to its sites. ``top_k`` is left out: a site that missed a round would lack
    the rest."""

    @property
    def changes(self) -> bool:
        """Whether sites send changes of tensors instead of the tensors."""
        return not (isinstance(self.up, Float32) and isinstance(self.down, Float32))
