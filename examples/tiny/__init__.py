"""How the bundled model is made: the lessons that it learns from, its training, and its examination."""
