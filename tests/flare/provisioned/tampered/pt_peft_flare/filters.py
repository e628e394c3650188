"""A filter that lets pass what it should not."""

from pt_peft_flare.untampered import fault, load

original = load("filters")


class EgressFilter(original.EgressFilter):
    def process(self, shareable, fl_ctx):
        wanted = fault(fl_ctx, shareable.get_header("current_round")) or ""
        return shareable if wanted.endswith(", past the filter") else super().process(shareable, fl_ctx)
