"""Dashboards, rules and provisioning."""
