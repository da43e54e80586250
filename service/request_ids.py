"""Request ids: UUIDv7, so that they sort by time. Python has it from 3.14 on."""

import secrets

from freshrank.clock import Clock


def new_request_id(clock: Clock) -> str:
    """48 bits of milliseconds, version 7, variant 2, the rest random.

    Source: RFC 9562, section 5.7.
    """
    random = secrets.randbits(74)
    value = (clock.now_ms() & ((1 << 48) - 1)) << 80
    value |= 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & ((1 << 62) - 1)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
