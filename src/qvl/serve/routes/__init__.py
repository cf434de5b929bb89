"""The routes of the API: from a checked request to jobs of the engine, and from their pieces to an answer."""
