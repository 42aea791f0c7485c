"""What a site's past jobs would have met: its trace replayed on its cluster, under one policy and another."""
