"""What all tests share."""

import signal

# A background job of a shell ignores Ctrl-C, and its children inherit that: tests that press it would fail.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
