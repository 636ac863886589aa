"""What a model says, told apart by kinds: its words, its thoughts before them, and the calls that it makes of tools.

Readers are pure: text in as it comes, pieces out. What is known of a model's ways is in `dialect`.
"""
