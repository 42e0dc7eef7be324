"""Ray actors: thin shells around the core's state machines. The only package that imports ray."""
