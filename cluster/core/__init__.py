"""The pure core: state machines and the algebra they compose. No I/O, clocks, randomness or logging."""
