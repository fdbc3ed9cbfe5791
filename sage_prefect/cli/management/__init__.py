"""Commands that speak to a running gateway's management API."""
