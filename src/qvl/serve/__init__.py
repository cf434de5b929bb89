"""`qvl serve`: one model behind an OpenAI-compatible API, shared by many people, with a page to look at."""
