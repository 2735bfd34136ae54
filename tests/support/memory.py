"""The memory that work takes, by torch's own account."""

from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_of(work: Any) -> int:
    """The most bytes that tensors made by `work` occupied at once, by torch's own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = work()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    del kept
    return peak
