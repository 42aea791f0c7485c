"""The scheduling policies, behind one protocol, by name; only ``tapfinger`` imports torch."""
