"""Recorded requests put through the real admission under another policy, in a time of their own. No store, no wire."""
