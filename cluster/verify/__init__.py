"""`harbor verify`: load, faults and an oracle against a running cluster, through its public ports only."""
