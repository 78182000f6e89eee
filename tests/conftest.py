"""What holds for every test."""

import signal

# A shell that starts the tests in the background leaves them, and all that they start, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
