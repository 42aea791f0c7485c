"""The scheduling policies, behind one protocol, by name; none needs torch."""
