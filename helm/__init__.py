"""The Helm chart, and what is made for it."""
