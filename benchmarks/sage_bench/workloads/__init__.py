"""Workloads: arrival processes, lengths, tenants, sessions, and readers of public traces."""
