"""First on a process's path: the clock on the wall, as Python sees it, is wrong by PT_PEFT_CLOCK_SHIFT seconds.

Not by LD_PRELOAD (libfaketime): waits that have a deadline on that clock, as gRPC's, would be wrong too.
"""

import datetime
import os
import time

_SHIFT_S = int(os.environ["PT_PEFT_CLOCK_SHIFT"])
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + _SHIFT_S
time.time_ns = lambda: _time_ns() + _SHIFT_S * 10**9


class _Type(type):
    def __instancecheck__(cls, instance):
        return isinstance(instance, _datetime)


class _Shifted(datetime.datetime, metaclass=_Type):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls):
        return cls.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)


_datetime, datetime.datetime = datetime.datetime, _Shifted
