"""Discrete-event simulation of engines and gateways; it drives the production scheduler."""
