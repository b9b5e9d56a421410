"""``personaplex bench``: how fast a model steps here, and how far that is from the limit."""
