"""``personaplex bench`` and ``personaplex drift``: speed and numerical accuracy of a model here."""
